"""The loop: resuming is exact, micro-batches do not matter, zero steps change nothing, interruptions lose nothing."""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from distill.config.recipe import load
from distill.data import shards
from distill.train import train
from distill.training import checkpoint, engine, setup
from eval.pipelines.runs import read_run
from teachers.families.stable_diffusion import StableDiffusion
from teachers.networks.adapters import unwrap
from tests.settings import FAST


@pytest.fixture
def recipes(text_pipeline, tmp_path):
    """A DMD and an sCM recipe on the tiny pipeline, with prompts and captioned images."""
    (tmp_path / "prompts.txt").write_text("a coat\na dress\n\nan ankle boot\n")
    images = tmp_path / "images"
    images.mkdir()
    for i in range(5):
        Image.new("RGB", (40, 32), (50 * i, 20, 90)).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text("a coat")
    common = (
        f"output: {tmp_path / 'runs'}\nteacher: {{family: stable_diffusion, path: {text_pipeline}, guidance: 2.0}}\n"
    )
    dmd, scm = tmp_path / "dmd.yaml", tmp_path / "scm.yaml"
    dmd.write_text(common + f"name: dmd\ndata: {{prompts: {tmp_path / 'prompts.txt'}}}\nmethod: {{name: dmd}}\n")
    scm.write_text(
        common + f"name: scm\ndata: {{images: {images}}}\n"
        "method: {name: scm, adaptation_steps: 2, tangent_warmup: 2, second_times: [0.5, 0.9]}\n"
    )
    return {"dmd": dmd, "scm": scm}


def ema(folder):
    return checkpoint.load_newest(folder / "checkpoints").ema


def distance(one, two):
    return sum((one[key] - two[key]).square().sum() for key in one).sqrt()


@pytest.mark.parametrize("method", ["dmd", "scm"])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(recipes, method):
    whole = load(recipes[method], [*FAST, "train.steps=4", "name=whole"])
    train(whole)
    train(load(recipes[method], [*FAST, "train.steps=2", "name=parts"]))
    parts = load(recipes[method], [*FAST, "train.steps=4", "name=parts"])
    train(parts)
    one, two = ema(whole.folder), ema(parts.folder)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("method", ["dmd", "scm"])
def test_reading_ahead_changes_no_bit(recipes, method, monkeypatch):
    """Rows in files are read by a thread, one micro-batch ahead: the same rows, resumed in the middle too."""
    settings = [*FAST, "train.accumulation=2", "train.steps=4"]
    whole, files = (load(recipes[method], [*settings, f"name={name}"]) for name in ("whole", "files"))
    train(whole)
    readers = set()
    monkeypatch.setattr(shards, "RESIDENT", 0)
    monkeypatch.setattr(shards.Table, "take", _noting(shards.Table.take, readers))
    train(replace(files, train=replace(files.train, steps=2)))
    train(files)
    assert any(name.startswith("read-ahead") for name in readers)
    one, two = ema(whole.folder), ema(files.folder)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("method", ["dmd", "scm"])
def test_channels_last_gives_the_same_student_and_resumes_bit_for_bit(recipes, method, monkeypatch):
    """Also from a checkpoint of the usual layout; a moment in another order than its weight would be nonsense."""
    layouts = []
    monkeypatch.setattr(engine.Engine, "update", _looking(engine.Engine.update, layouts))
    usual, whole, parts, mixed = (
        load(recipes[method], [*FAST, "train.steps=4", f"train.channels_last={last}", f"name={name}"])
        for name, last in (("usual", False), ("whole", True), ("parts", True), ("mixed", True))
    )
    train(usual)
    assert not any(layouts)
    layouts.clear()
    train(whole)
    train(replace(parts, train=replace(parts.train, steps=2)))
    train(parts)
    train(replace(mixed, train=replace(mixed.train, steps=2, channels_last=False)))
    assert any(layouts)
    train(mixed)
    ends = {recipe.name: ema(recipe.folder) for recipe in (usual, whole, parts, mixed)}
    assert all(torch.equal(value, ends["parts"][key]) for key, value in ends["whole"].items())
    start = StableDiffusion.load(usual.teacher.path, torch.device("cpu")).student().state_dict()
    moved = distance(start, ends["usual"])
    assert moved > 0
    assert all(distance(ends[name], ends["usual"]) < 1e-2 * moved for name in ("whole", "mixed"))
    exported = load_file(whole.folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(value.is_contiguous() for value in exported.values())
    DiffusionPipeline.from_pretrained(whole.folder / "pipeline")


@pytest.mark.parametrize("memory", ["memory.tier=full", "memory.tier=lora", "memory.offload_teacher=true"])
def test_channels_last_reaches_every_network(recipes, memory, monkeypatch):
    kept = []
    prepare = engine.Engine.prepare
    monkeypatch.setattr(engine.Engine, "prepare", lambda *given: kept.append(given[1]) or prepare(*given))
    train(load(recipes["dmd"], [*FAST, "train.steps=2", "train.channels_last=true", memory]))
    (distiller,) = kept
    for network in (unwrap(distiller.teacher.denoiser.network), distiller.student, distiller.fake_score):
        weights = [p for name, p in network.named_parameters() if "lora" not in name]  # a base holds all adapters
        spatial = [p for p in weights if p.ndim == 4 and p.shape[-1] > 1 and p.shape[1] > 1]
        assert spatial and all(p.is_contiguous(memory_format=torch.channels_last) for p in spatial)


def _looking(update, layouts):
    """Notes whether convolutions are channels-last, and that their moments are where they are."""

    def looking(self, optimizer):
        update(self, optimizer)
        for parameter, state in optimizer.state.items():
            assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == parameter.stride()
            layouts.append(not parameter.is_contiguous())

    return looking


def _noting(take, readers):
    def noting(self, rows):
        readers.add(threading.current_thread().name)
        return take(self, rows)

    return noting


@pytest.mark.parametrize("method", ["dmd", "scm"])
def test_accumulation_gives_the_gradient_of_the_whole_batch(recipes, method):
    """Two micro-batches a turn, several optimizers: the same weights as one batch, to rounding.

    With a large epsilon Adam's step is linear in the gradient, so that rounding is not blown up where a gradient is
    tiny.
    """
    phases = ("student", "fake_score") if method == "dmd" else ("student",)
    linear = [f"optimizers.{phase}.{key}" for phase in phases for key in ("eps=10.0", "lr=1.0", "weight_decay=0.0")]

    def run(name, *extra):
        recipe = load(recipes[method], [*FAST, *linear, "train.steps=3", f"name={name}", *extra])
        train(recipe)
        return ema(recipe.folder)

    start = run("start", *(f"optimizers.{phase}.lr=0.0" for phase in phases))
    whole, split = run("whole"), run("split", "train.accumulation=2")
    moved = max((whole[key] - start[key]).abs().max() for key in start)
    apart = max((whole[key] - split[key]).abs().max() for key in start)
    assert moved > 1e-4
    assert apart < 1e-3 * moved


@pytest.mark.parametrize("channels_last", [False, True])
def test_zero_steps_export_the_teacher_itself(recipes, channels_last):
    recipe = load(recipes["dmd"], [*FAST, "train.steps=0", f"train.channels_last={channels_last}"])
    folder = train(recipe)
    trained = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    teacher = StableDiffusion.load(recipe.teacher.path, torch.device("cpu")).denoiser.network.state_dict()
    assert all(torch.equal(trained[key], teacher[key]) for key in teacher)
    record = json.loads((folder / "distill.json").read_text())
    assert record["calls"] == [{"num_steps": 1, "call": {"num_inference_steps": 1, "guidance_scale": 1.0}}]
    assert "num_inference_steps=1, guidance_scale=1.0" in (folder / "README.md").read_text()


def test_zero_steps_of_scm_export_the_teacher_too(recipes):
    folder = train(load(recipes["scm"], [*FAST, "train.steps=0"]))
    trained = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    teacher = StableDiffusion.load(load(recipes["scm"]).teacher.path, torch.device("cpu")).denoiser.network.state_dict()
    other = {key for key in teacher if not torch.equal(trained[key], teacher[key])}
    assert other <= {"time_embedding.linear_1.weight"}  # edited, so that the export's grid gives the student's times


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_teacher_in_half_precision(recipes, precision):
    folder = train(load(recipes["scm"], [*FAST, "train.steps=3", f"teacher.precision={precision}"]))
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert pipe("a coat", num_inference_steps=1, output_type="pt").images.isfinite().all()


def test_a_student_of_an_image_folder_carries_its_prompts(recipes):
    folder = train(load(recipes["scm"], [*FAST, "train.steps=2"]))
    assert read_run(folder).prompts == str(folder / "training_prompts.txt")
    assert (folder / "training_prompts.txt").read_text() == "a coat\n"


def test_gradients_that_stay_not_finite_stop_the_run_with_a_sentence(recipes, monkeypatch):
    monkeypatch.setattr(StableDiffusion, "velocity", lambda self, x, *a: x * float("nan"))
    monkeypatch.setattr(setup, "Monitor", lambda *a: None)
    with pytest.raises(ValueError, match="gradients that are not finite"):
        train(load(recipes["dmd"], [*FAST, "train.steps=30"]))


def test_scm_chooses_the_second_time_and_writes_curve_and_grid(recipes):
    recipe = load(recipes["scm"], [*FAST, "train.steps=4", "train.evaluate_every=2", "train.tracker=tensorboard"])
    folder = train(recipe)
    record = json.loads((folder / "distill.json").read_text())
    assert record["times"][1] in (0.5, 0.9)
    assert [call["num_steps"] for call in record["calls"]] == [1, 2]
    history = [json.loads(line) for line in (recipe.folder / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history] == [0, 2, 4]
    assert all(set(entry["held_out_frechet"]) == {"1", "2"} for entry in history)
    with Image.open(recipe.folder / "samples" / "00000004.png") as grid:
        assert grid.height >= 3 * 32
    assert list(recipe.folder.rglob("events.out.tfevents*"))


def test_a_resumed_run_leaves_one_line_an_interval_in_log_and_history(recipes):
    every = [*FAST, "train.log_every=1", "train.evaluate_every=2"]
    recipe = load(recipes["dmd"], [*every, "train.steps=2"])
    train(recipe)
    log = recipe.folder / "log.jsonl"
    with log.open("a") as file:  # what a run killed at step 3 leaves
        file.write('{"step": 3, "seconds": 9.0, "student/loss": null}\n{"step": 4, "sec')
    train(load(recipes["dmd"], [*every, "train.steps=4"]))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all({"student/loss", "fake_score/loss", "student/gradient_norm"} <= set(line) for line in lines)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds) and lines[2]["student/loss"] is not None
    history = [json.loads(line) for line in (recipe.folder / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history] == [0, 2, 4]


def test_a_finished_run_is_not_run_again(recipes, capsys):
    recipe = load(recipes["dmd"], [*FAST, "train.steps=2"])
    folder = train(recipe)
    before = (folder / "distill.json").stat().st_mtime_ns
    assert train(recipe) == folder
    assert (folder / "distill.json").stat().st_mtime_ns == before
    assert "is finished" in capsys.readouterr().out


def test_another_recipe_in_the_same_folder_is_refused(recipes):
    train(load(recipes["dmd"], [*FAST, "train.steps=2"]))
    with pytest.raises(ValueError, match="checkpoints of another recipe"):
        train(load(recipes["dmd"], [*FAST, "train.steps=4", "method.fake_score_updates=1"]))


def test_regression_on_teacher_pairs(recipes):
    extra = ["method.regression_weight=0.5", "method.regression_distance=latent", "method.regression_pairs=6"]
    extra += ["train.steps=2"]
    recipe = load(recipes["dmd"], [*FAST, *extra])
    train(recipe)
    (shard,) = (recipe.folder / "cache").glob("pairs-*/*.safetensors")
    assert load_file(shard)["noise"].shape == (6, 4, 8, 8)


def test_a_signal_saves_and_the_same_command_goes_on(recipes, tmp_path):
    arguments = [sys.executable, "-m", "distill.train", str(recipes["dmd"]), *FAST, "train.steps=100000"]
    arguments += ["train.checkpoint_every=100000"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "runs" / "dmd"
    seen = ""
    while "/100000 [" not in seen or " 0/100000" in seen[-90:]:  # until the bar has moved
        seen += process.stderr.read(1)
        assert process.poll() is None, seen
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "run the same command again" in out
    assert checkpoint.steps(folder / "checkpoints")


def checkpoints(folder, steps, **save):
    state = checkpoint.Checkpoint({"a": torch.ones(2)}, {"b": torch.ones(2)}, {"student": {"x": 1}}, {"seconds": 1.0})
    for step in steps:
        state.meta["step"] = step
        checkpoint.save(folder, state, **save)


def test_the_newest_checkpoints_stay_and_every_nth_for_good(tmp_path):
    checkpoints(tmp_path, range(1, 8), keep=2, keep_every=3)
    assert checkpoint.steps(tmp_path) == [3, 6, 7]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000003", "00000006", "00000007"]


def test_checkpoints_are_whole_or_absent(tmp_path):
    checkpoints(tmp_path, (1, 2, 3), keep=2)
    assert checkpoint.steps(tmp_path) == [2, 3]
    (tmp_path / ".00000009.tmp").mkdir()  # what a kill in the middle of a save leaves
    checkpoint.quarantine_damaged(tmp_path)
    assert not (tmp_path / ".00000009.tmp").exists()
    assert checkpoint.load_newest(tmp_path).meta["step"] == 3
