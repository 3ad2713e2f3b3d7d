"""Accidents in long runs: non-finite batches, clock changes, changed data, a second start, kills, full disks."""

import json
import math
import os
import signal
import time

import pytest
import torch
from PIL import Image

from distill.config.sections import OptimizerRecipe, TrainRecipe
from distill.methods.dmd import DMD
from distill.train import train
from distill.training import checkpoint
from distill.training.engine import Engine
from distill.training.full_state import full_state
from distill.training.guard import NonFiniteGuard, Stop
from distill.training.jsonl_log import JsonlLog
from distill.training.optimizers import adamw
from distill.training.run_folder import lock_run_folder
from teachers.support.checksums import seal
from tests.faults import kill, processes
from tests.forks import Fork


def newest(run):
    return checkpoint.load_newest(run.folder / "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.first_by_default
def test_batch_with_nonfinite_gradient_is_skipped_and_reported_with_its_random_key(recipe, monkeypatch, capsys, where):
    student_phase = DMD.student_phase
    calls = []

    def nonfinite_once(self, batch):
        loss, logs = student_phase(self, batch)
        calls.append(loss)
        if len(calls) == 2:
            loss = (
                loss * float("nan") if where == "loss" else loss + (loss - loss.detach()).sqrt()
            )  # sqrt(0) has an infinite slope
        return loss, logs

    monkeypatch.setattr(DMD, "student_phase", nonfinite_once)
    run = recipe("train.steps=2", "train.keep_checkpoints=9")
    train(run)
    one, two = (
        checkpoint.load_file(run.folder / "checkpoints" / f"{step:08d}" / checkpoint.WEIGHTS) for step in (1, 2)
    )
    for key, value in one.items():
        if key.startswith("student"):
            assert torch.equal(value, two[key]), key  # the fake score, whose batches were finite, is trained:
    assert any(not torch.equal(value, two[key]) for key, value in one.items() if key.startswith("fake_score"))
    moments = newest(run).optimizers["student"]["state"].values()
    assert all(state["step"] == 1 and state["exp_avg"].isfinite().all() for state in moments)
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [line.get("student/skipped") for line in lines] == [None, 1.0]
    out = capsys.readouterr()
    reason = "the loss is not finite" if where == "loss" else "the loss is finite, but its gradient is not"
    message = f"step 1, phase student: skipped, {reason} (random numbers of the batch: BatchRandom((0, 1, 2), ...))"
    assert message in out.out + out.err


@pytest.mark.exhaustive
def test_system_clock_changes_affect_neither_weights_nor_cost(recipe, monkeypatch):
    steady, jumping = recipe("train.steps=2", name="steady"), recipe("train.steps=2", name="jumping")
    train(steady)
    clock, calls = time.time, []
    monkeypatch.setattr(time, "time", lambda: clock() + 1e6 * (-1) ** (calls.append(0) or len(calls)))
    train(jumping)
    one, two = newest(steady), newest(jumping)
    assert all(torch.equal(one.weights[key], two.weights[key]) for key in one.weights)
    assert 0 < two.meta["seconds"] < 100


@pytest.mark.exhaustive
def test_changed_data_is_rejected_and_moved_data_is_not(recipe, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a coat\na dress\n")
    train(recipe("train.steps=1", f"data.prompts={prompts}"))
    moved = prompts.rename(tmp_path / "moved.txt")
    train(recipe("train.steps=2", f"data.prompts={moved}"))
    moved.write_text("a coat\na bag\n")
    with pytest.raises(ValueError, match="of another recipe or of other data"):
        train(recipe("train.steps=3", f"data.prompts={moved}"))


@pytest.mark.slow
def test_changed_pixels_are_other_data(recipe, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (32, 32), (200, 20, 90)).save(folder / "a.bmp")
    (folder / "a.txt").write_text("a coat")
    train(recipe("train.steps=1", f"data.images={folder}", method="scm"))
    Image.new("RGB", (32, 32), (201, 20, 90)).save(folder / "a.bmp")  # with the same file size
    with pytest.raises(ValueError, match="other data"):
        train(recipe("train.steps=2", f"data.images={folder}", method="scm"))


def hold(folder):
    """Lock a run folder until the process ends."""
    with lock_run_folder(folder):
        print("held", flush=True)
        time.sleep(100)


@pytest.mark.slow
def test_run_folder_is_locked_until_the_process_ends(recipe, tmp_path):
    run = recipe("train.steps=1")
    holder = Fork(tmp_path / "holder", hold, run.folder)
    holder.wait_for("held")
    with pytest.raises(
        ValueError, match=f"in use by another command .process {holder.process.pid} on .* give this run another"
    ):
        train(run)
    assert not (run.folder / "checkpoints").exists()
    holder.kill()
    train(run)
    with lock_run_folder(run.folder):  # the finished run has released the lock
        pass


@pytest.mark.exhaustive
def test_two_precisions_in_one_process(recipe):
    train(recipe("train.steps=1", "train.precision=bf16", name="half"))
    train(recipe("train.steps=1", "train.precision=no", name="whole"))


@pytest.mark.parametrize(
    ("variables", "overrides", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, [], r"DEEPSPEED cannot train several .* recipes/accelerate/fsdp2\.yaml"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, [], "fsdp_version: 2"),
        ({}, ["train.shard_teacher=true"], "needs FSDP2"),
        ({"ACCELERATE_USE_FSDP": "true"}, ["train.precision=fp16"], "use train.precision=bf16"),
        (
            {"ACCELERATE_USE_FSDP": "true"},
            ["train.channels_last=true"],
            r"train\.channels_last=true cannot be combined with FSDP2",
        ),
    ],
)
@pytest.mark.first_is_quick
def test_unsupported_launcher_configurations_are_rejected(recipe, monkeypatch, variables, overrides, message):
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=message):
        train(recipe("train.steps=1", *overrides))


def test_gradient_scaler_skips_steps_and_its_state_is_saved(tmp_path):
    """The engine with fp16, on the CPU; accelerate creates a gradient scaler on GPUs only."""
    engine = Engine(TrainRecipe(tracker="none"), tmp_path)
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = adamw([weight], OptimizerRecipe(lr=0.1))
    guard = NonFiniteGuard(0, 40)
    messages = []
    for step, factor in enumerate((1.0, math.inf, 1.0)):
        before = weight.detach().clone()
        loss = (weight * factor).sum()
        engine.scaler.scale(loss).backward()
        norm = engine.clip(optimizer, [weight], 1.0)
        guard.check(optimizer, "student", 0, step, norm, loss)
        engine.update(optimizer)
        assert torch.equal(before, weight) == (factor == math.inf)
    guard.read(messages.append)
    assert len(messages) == 1 and messages[0].startswith("step 1, phase student: skipped")
    assert guard.take_counts() == {"student/skipped": 1.0} and guard.take_counts() == {}
    again = torch.amp.GradScaler("cpu", init_scale=8.0)
    again.load_state_dict(full_state(engine.scaler.state_dict(), keep=True))
    assert again.get_scale() == 4.0  # halved because of the overflow
    assert optimizer.state[weight]["step"] == 2


def test_simultaneous_signals_count_once_and_a_later_one_acts_immediately(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    stop = Stop()
    try:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # as from a terminal and a launcher
        assert stop.agreed()
        later = time.monotonic() + 60
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        stop.restore()
        signal.signal(signal.SIGINT, before)


def test_jsonl_log_survives_a_full_disk(tmp_path):
    log = JsonlLog(tmp_path / "log.jsonl", 0)
    log.append({"step": 1, "x": float("inf")})
    log.path.chmod(0o400)
    if os.geteuid() == 0:  # root can write anyway, but not to a folder
        content = log.path.read_text()
        log.path.unlink()
        log.path.mkdir()
        with pytest.warns(UserWarning, match="a record could not be written"):
            log.append({"step": 2})
        log.path.rmdir()
        log.path.write_text(content)
    assert JsonlLog(tmp_path / "log.jsonl", 1).last == 1
    assert json.loads(log.path.read_text()) == seal({"step": 1, "x": None, "run": ""})


@pytest.mark.slow
def test_killed_runs_end_with_bitwise_the_same_weights(text_pipeline, tmp_path):
    done = Fork(tmp_path, kill.main, ["--kills", "2", "--steps", "9", "--teacher", str(text_pipeline)])
    assert done.wait(250) == 0, done.out + done.error
    result = json.loads(done.out.splitlines()[-1])
    assert result["kills"] == 2 and result["bitwise identical"]
    assert result["most steps lost"] <= 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases",
    [
        [("ddp", "gan"), ("fsdp2", "scm")],
        *(
            pytest.param(c, marks=pytest.mark.exhaustive)
            for c in ([("fsdp2", "rcm")], [("fsdp2", "lcm"), ("fsdp2", "sid")])
        ),
    ],
    ids=str,
)
def test_two_processes_have_the_losses_of_one_and_resume(cases, text_pipeline, tmp_path):
    differences = processes.compare(cases, 6, str(text_pipeline), tmp_path)
    assert set(differences) == {"-".join(case) for case in cases}
    assert max(differences.values()) < 1e-4, differences


def test_unquoted_no_is_the_precision_no(recipe):
    assert recipe("train.precision=no").train.precision == "no"


@pytest.mark.exhaustive
def test_run_continues_with_another_number_of_micro_batches(recipe):
    train(recipe("train.steps=1"))
    folder = train(recipe("train.steps=2", "train.accumulation=2"))
    assert json.loads((folder / "distill.json").read_text())["cost"]["steps"] == 2
