"""What happens to long runs: a bad batch, a jumping clock, a second start, a kill, a process that dies."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from distill.config.recipe import OptimizerRecipe
from distill.methods.dmd import DMD
from distill.train import train
from distill.training import checkpoint
from distill.training.engine import Engine
from distill.training.guard import NonFiniteGuard, Stop
from distill.training.optimizers import adamw
from distill.training.run_folder import JsonlLog, lock_run_folder


def newest(run):
    return checkpoint.load_newest(run.folder / "checkpoints")


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_batch_without_a_finite_gradient_changes_nothing_and_is_told_with_its_seeds(
    recipe, monkeypatch, capsys, where
):
    phase = DMD.student_phase
    calls = []

    def spoilt(self, batch):
        loss, logs = phase(self, batch)
        calls.append(loss)
        if len(calls) == 2:
            loss = loss * float("nan") if where == "loss" else loss + (loss - loss.detach()).sqrt()  # 0, slope infinite
        return loss, logs

    monkeypatch.setattr(DMD, "student_turn", spoilt)
    run = recipe("train.steps=2", "train.keep_checkpoints=9")
    train(run)
    one, two = (
        checkpoint.load_file(run.folder / "checkpoints" / f"{step:08d}" / checkpoint.WEIGHTS) for step in (1, 2)
    )
    for key, value in one.items():
        if key.startswith("student"):
            assert torch.equal(value, two[key]), key  # and the network that had a good batch went on:
    assert any(not torch.equal(value, two[key]) for key, value in one.items() if key.startswith("fake_score"))
    moments = newest(run).optimizers["student"]["state"].values()
    assert all(state["step"] == 1 and state["exp_avg"].isfinite().all() for state in moments)
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [line.get("student/skipped") for line in lines] == [None, 1.0]
    out = capsys.readouterr()
    what = "the loss is not finite" if where == "loss" else "the loss is finite, its gradient is not"
    assert f"step 1, turn student: skipped, {what} (its batch: Draws((0, 1, 2), ...))" in out.out + out.err


def test_a_clock_that_jumps_changes_neither_weights_nor_costs(recipe, monkeypatch):
    calm, jumping = recipe("train.steps=2", name="calm"), recipe("train.steps=2", name="jumping")
    train(calm)
    clock, calls = time.time, []
    monkeypatch.setattr(time, "time", lambda: clock() + 1e6 * (-1) ** (calls.append(0) or len(calls)))
    train(jumping)
    one, two = newest(calm), newest(jumping)
    assert all(torch.equal(one.weights[key], two.weights[key]) for key in one.weights)
    assert 0 < two.meta["seconds"] < 100


def test_data_that_changed_under_a_run_is_noticed_and_data_that_moved_is_not(recipe, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a coat\na dress\n")
    train(recipe("train.steps=1", f"data.prompts={prompts}"))
    moved = prompts.rename(tmp_path / "moved.txt")
    train(recipe("train.steps=2", f"data.prompts={moved}"))
    moved.write_text("a coat\na bag\n")
    with pytest.raises(ValueError, match="of another recipe or of other data"):
        train(recipe("train.steps=3", f"data.prompts={moved}"))


def test_an_image_whose_pixels_changed_is_other_data(recipe, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (32, 32), (200, 20, 90)).save(folder / "a.bmp")
    (folder / "a.txt").write_text("a coat")
    train(recipe("train.steps=1", f"data.images={folder}", method="scm"))
    Image.new("RGB", (32, 32), (201, 20, 90)).save(folder / "a.bmp")  # of the same size
    with pytest.raises(ValueError, match="other data"):
        train(recipe("train.steps=2", f"data.images={folder}", method="scm"))


HOLD = "import sys, time; from pathlib import Path; from distill.training.run_folder import claim\n"
HOLD += "with claim(Path(sys.argv[1])): print('held', flush=True); time.sleep(100)"


def test_a_second_run_in_a_folder_is_refused_and_a_dead_one_is_no_hindrance(recipe):
    run = recipe("train.steps=1")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run.folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"in use by another run .process {holder.pid} on .* give this one another"):
        train(run)
    assert not (run.folder / "checkpoints").exists()
    holder.kill()
    holder.wait()
    train(run)
    with lock_run_folder(run.folder):  # and the finished run has let go of it
        pass


def test_two_precisions_in_one_process(recipe):
    train(recipe("train.steps=1", "train.precision=bf16", name="half"))
    train(recipe("train.steps=1", "train.precision=no", name="whole"))


@pytest.mark.parametrize(
    ("variables", "overrides", "sentence"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, [], r"DEEPSPEED cannot train several .* recipes/accelerate/fsdp2.yaml"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, [], "fsdp_version: 2"),
        ({}, ["train.shard_teacher=true"], "needs FSDP2"),
        ({"ACCELERATE_USE_FSDP": "true"}, ["train.precision=fp16"], "use train.precision=bf16"),
        ({"ACCELERATE_USE_FSDP": "true"}, ["train.channels_last=true"], "or in DDP, not in FSDP2"),
    ],
)
def test_engines_that_cannot_run_this_are_refused_with_a_sentence(recipe, monkeypatch, variables, overrides, sentence):
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=sentence):
        train(recipe("train.steps=1", *overrides))


def test_a_gradient_scaler_skips_steps_too_and_its_state_is_kept():
    """fp16's way through the engine, on the CPU: accelerate itself makes a scaler on GPUs only."""
    engine = object.__new__(Engine)
    engine.scaler, engine._roots, engine.is_main = torch.amp.GradScaler("cpu", init_scale=8.0), [], True
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = adamw([weight], OptimizerRecipe(lr=0.1))
    skips = NonFiniteGuard(0, 40)
    told = []
    for step, factor in enumerate((1.0, math.inf, 1.0)):
        before = weight.detach().clone()
        loss = (weight * factor).sum()
        engine.scaler.scale(loss).backward()
        norm = engine.clip(optimizer, [weight], 1.0)
        skips.check(optimizer, "student", 0, step, norm, loss)
        engine.update(optimizer)
        assert torch.equal(before, weight) == (factor == math.inf)
    skips.read(told.append)
    assert len(told) == 1 and told[0].startswith("step 1, turn student: skipped")
    assert skips.take() == {"student/skipped": 1.0} and skips.take() == {}
    again = torch.amp.GradScaler("cpu", init_scale=8.0)
    again.load_state_dict(engine.full_state(engine.scaler.state_dict()))
    assert again.get_scale() == 4.0  # halved by the step that overflowed
    assert optimizer.state[weight]["step"] == 2


def test_two_signals_for_one_wish_are_one_and_a_later_one_does_not_wait(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    stop = Stop()
    try:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # as a terminal and a launcher do
        assert stop.agreed()
        later = time.monotonic() + 60
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        stop.restore()
        signal.signal(signal.SIGINT, before)


def test_a_journal_survives_a_disk_without_room(tmp_path):
    journal = JsonlLog(tmp_path / "log.jsonl", 0)
    journal.append({"step": 1, "x": float("inf")})
    journal.path.chmod(0o400)
    if os.geteuid() == 0:  # root writes all the same: a folder in its place does not let even root
        kept = journal.path.read_text()
        journal.path.unlink()
        journal.path.mkdir()
        with pytest.warns(UserWarning, match="no line could be added"):
            journal.append({"step": 2})
        journal.path.rmdir()
        journal.path.write_text(kept)
    assert JsonlLog(tmp_path / "log.jsonl", 1).last == 1
    assert json.loads(journal.path.read_text()) == {"step": 1, "x": None}


def test_kills_at_any_moment_end_in_the_same_weights(text_pipeline):
    command = [sys.executable, Path(__file__).with_name("kill.py"), "--kills", "2", "--steps", "12"]
    done = subprocess.run(
        [*map(str, command), "--teacher", str(text_pipeline)], capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["kills"] == 2 and found["bitwise the undisturbed run"]
    assert found["most steps lost"] <= 5


WATCH = """\
import os, sys, time, datetime
import torch.distributed as dist
from distill.training.guard import Watchdog
rank = int(os.environ["RANK"])
dist.init_process_group("gloo", rank=rank, world_size=2)
watchdog = Watchdog(rank, 2, beat=0.2, silence=1.0)
dist.barrier()
watchdog.start()
print("watching", flush=True)
if sys.argv[1] == "fails" and rank == 1:
    watchdog.end(ValueError("no room in memory"))
if sys.argv[1] == "done":
    time.sleep(1.5 * rank)
    watchdog.end(None)
    time.sleep(1.5)
    sys.exit(0)
time.sleep(100)
"""


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("frozen", "process 1 has given no sign of life"),
        ("fails", "process 1 failed: no room in memory"),
        ("done", ""),
    ],
)
def test_a_process_that_dies_or_freezes_takes_the_others_down_with_a_word(how, word):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    shared = os.environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", WATCH, how],
            env=shared | {"RANK": rank, "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        assert all(process.stdout.readline() == "watching\n" for process in both)
        if how == "frozen":
            both[1].send_signal(signal.SIGSTOP)
        _, said = both[0].communicate(timeout=30)
        assert both[0].returncode == (0 if how == "done" else 1)
        assert word in said
        if how == "done":
            assert both[1].wait(timeout=30) == 0
    finally:
        for process in both:
            process.kill()


def test_two_processes_have_the_losses_of_one_and_resume(text_pipeline):
    command = [sys.executable, Path(__file__).with_name("processes.py"), "--steps", "4", "--teacher", text_pipeline]
    command += ["--only", "ddp-gan", "fsdp2-rcm"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("largest relative difference") == 2


def test_a_bare_no_is_the_precision_called_no(recipe):
    assert recipe("train.precision=no").train.precision == "no"


def test_recipes_of_the_project_keep_their_fingerprints_over_processes(recipe):
    """More micro-batches, as a smaller machine needs, continue the same run."""
    train(recipe("train.steps=1"))
    folder = train(recipe("train.steps=2", "train.accumulation=2"))
    assert json.loads((folder / "distill.json").read_text())["cost"]["steps"] == 2
