"""The training loop: exact resuming, micro-batches, zero steps, interruptions, evaluations."""

import functools
import json
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
from teachers.support.errors import EXIT_TERMINATED
from tests.commands import fewstep
from tests.forks import Fork
from tests.runs import interrupted
from tests.settings import FAST


@pytest.fixture(scope="module")
def files(text_pipeline, tmp_path_factory):
    """A DMD and an sCM recipe on the tiny pipeline, with prompts and captioned images."""
    tmp_path = tmp_path_factory.mktemp("recipes")
    (tmp_path / "prompts.txt").write_text("a coat\na dress\n\nan ankle boot\n")
    images = tmp_path / "images"
    images.mkdir()
    for i in range(5):
        Image.new("RGB", (40, 32), (50 * i, 20, 90)).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text("a coat")
    common = f"teacher: {{family: stable_diffusion, path: {text_pipeline}, guidance: 2.0}}\n"
    dmd, scm = tmp_path / "dmd.yaml", tmp_path / "scm.yaml"
    dmd.write_text(common + f"name: dmd\ndata: {{prompts: {tmp_path / 'prompts.txt'}}}\nmethod: {{name: dmd}}\n")
    scm.write_text(
        common + f"name: scm\ndata: {{images: {images}}}\n"
        "method: {name: scm, adaptation_steps: 2, tangent_warmup: 2, second_times: [0.5, 0.9]}\n"
    )
    return {"dmd": dmd, "scm": scm}


@pytest.fixture
def make(files, tmp_path):
    """make(method, *overrides): a recipe whose run is in the test's folder."""
    return lambda method, *overrides: load(files[method], [*FAST, f"output={tmp_path / 'runs'}", *overrides])


@pytest.fixture(scope="module")
def whole_of(files, tmp_path_factory):
    """Function whole_of(method) -> the recipe of a finished run of 4 steps of two micro-batches; each is run once."""
    root = tmp_path_factory.mktemp("whole")

    @functools.cache
    def run(method):
        whole = load(files[method], [*FAST, f"output={root}", "train.steps=4", "train.accumulation=2"])
        train(whole)
        return whole

    return run


def ema(folder):
    return checkpoint.load_newest(folder / "checkpoints").ema


def distance(one, two):
    return sum((one[key] - two[key]).square().sum() for key in one).sqrt()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dmd", "scm"])
@pytest.mark.first_by_default
def test_resumed_run_is_bitwise_identical(whole_of, method):
    whole = whole_of(method)
    parts = interrupted(whole, f"{method}-parts")
    train(parts)
    one, two = ema(whole.folder), ema(parts.folder)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_a_method_changes_weights_after_its_updates(make):
    """An alignment of 1 copies the student into the fake score at the end of a step."""
    run = make("dmd", "train.steps=1", "method.fake_score_alignment=1.0")
    train(run)
    saved = checkpoint.load_newest(run.folder / "checkpoints").weights
    student = {name: value for name, value in saved.items() if name.startswith("student.")}
    assert student and all(torch.equal(saved[f"fake_score.{n.partition('.')[2]}"], v) for n, v in student.items())


@pytest.mark.parametrize("method", ["dmd", "scm"])
@pytest.mark.exhaustive
def test_reading_rows_ahead_from_files_gives_bitwise_the_same_run(make, whole_of, method, monkeypatch):
    """Rows in files are read by a thread, one micro-batch ahead, in a resumed run too."""
    files = make(method, "train.accumulation=2", "train.steps=4")
    readers = set()
    monkeypatch.setattr(shards, "RESIDENT", 0)
    monkeypatch.setattr(shards.Table, "gather", record_threads(shards.Table.gather, readers))
    train(replace(files, train=replace(files.train, steps=2)))
    train(files)
    assert any(name.startswith("read-ahead") for name in readers)
    one, two = ema(whole_of(method).folder), ema(files.folder)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("method", ["dmd", "scm"])
@pytest.mark.exhaustive
def test_channels_last_gives_the_same_student_and_resumes_bitwise(make, whole_of, method, monkeypatch):
    """Also when resuming a contiguous checkpoint; moments must have the memory format of their parameters."""
    layouts = []
    monkeypatch.setattr(engine.Engine, "update", record_layouts(engine.Engine.update, layouts))
    contiguous = whole_of(method)
    last = make(method, "train.steps=4", "train.accumulation=2", "train.channels_last=true", "name=last")
    train(last)
    assert any(layouts)
    ends = {"contiguous": ema(contiguous.folder), "last": ema(last.folder)}
    for number, start in enumerate((last, contiguous)):
        parts = interrupted(start, f"{method}-last-{number}")
        layouts.clear()
        train(replace(parts, train=replace(parts.train, channels_last=True)))
        assert any(layouts)
        ends[("parts", "mixed")[number]] = ema(parts.folder)
    assert all(torch.equal(value, ends["parts"][key]) for key, value in ends["last"].items())
    start = StableDiffusion.load(contiguous.teacher.path, torch.device("cpu")).student().state_dict()
    moved = distance(start, ends["contiguous"])
    assert moved > 0
    assert all(distance(ends[name], ends["contiguous"]) < 1e-2 * moved for name in ("last", "mixed"))
    exported = load_file(last.folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(value.is_contiguous() for value in exported.values())
    DiffusionPipeline.from_pretrained(last.folder / "pipeline")


@pytest.mark.exhaustive
def test_parameters_are_contiguous_without_channels_last(make, monkeypatch):
    layouts = []
    monkeypatch.setattr(engine.Engine, "update", record_layouts(engine.Engine.update, layouts))
    train(make("dmd", "train.steps=1"))
    assert layouts and not any(layouts)


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["memory.tier=full", "memory.tier=lora", "memory.offload_teacher=true"])
@pytest.mark.first_by_default
def test_channels_last_converts_every_network(make, memory, monkeypatch):
    distillers = []
    prepare = engine.Engine.prepare
    monkeypatch.setattr(engine.Engine, "prepare", lambda *args: distillers.append(args[1]) or prepare(*args))
    train(make("dmd", "train.steps=1", "train.channels_last=true", "teacher.precision=float32", memory))
    (distiller,) = distillers
    for network in (unwrap(distiller.teacher.denoiser.network), distiller.student, distiller.fake_score):
        weights = [
            p for name, p in network.named_parameters() if "lora" not in name
        ]  # LoRA matrices are not convolutions
        spatial = [p for p in weights if p.ndim == 4 and p.shape[-1] > 1 and p.shape[1] > 1]
        assert spatial and all(p.is_contiguous(memory_format=torch.channels_last) for p in spatial)


def record_layouts(update, layouts):
    """`update`, which also records whether parameters are channels-last and checks the layout of their moments."""

    def recording(self, optimizer):
        update(self, optimizer)
        for parameter, state in optimizer.state.items():
            assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == parameter.stride()
            layouts.append(not parameter.is_contiguous())

    return recording


def record_threads(gather, names):
    """`gather`, which also adds the name of the calling thread to `names`."""

    def recording(self, rows):
        names.add(threading.current_thread().name)
        return gather(self, rows)

    return recording


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dmd", "scm"])
@pytest.mark.first_by_default
def test_accumulation_gives_the_gradient_of_the_whole_batch(make, method):
    """Two micro-batches for each phase give the weights of one batch, up to rounding.

    With a large epsilon Adam's step is linear in the gradient, so rounding of small gradients is not amplified.
    """
    phases = ("student", "fake_score") if method == "dmd" else ("student",)
    linear = [f"optimizers.{phase}.{key}" for phase in phases for key in ("eps=10.0", "lr=1.0", "weight_decay=0.0")]

    def run(name, *extra):
        recipe = make(method, *linear, "train.steps=2", "train.checkpoint_every=1", f"name={name}", *extra)
        train(recipe)
        return recipe

    recipe, split = run("whole"), ema(run("split", "train.accumulation=2").folder)
    whole, start = ema(recipe.folder), ema(interrupted(recipe, "start").folder)  # after two steps, and after one
    moved = max((whole[key] - start[key]).abs().max() for key in start)
    apart = max((whole[key] - split[key]).abs().max() for key in start)
    assert moved > 1e-4
    assert apart < 1e-3 * moved


@pytest.mark.slow
def test_zero_steps_export_the_teacher(make):
    recipe = make("dmd", "train.steps=0", "train.channels_last=true")
    folder = train(recipe)
    exported = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    teacher = StableDiffusion.load(recipe.teacher.path, torch.device("cpu")).denoiser.network.state_dict()
    assert all(torch.equal(exported[key], teacher[key]) for key in teacher)
    record = json.loads((folder / "distill.json").read_text())
    assert record["calls"] == [{"num_steps": 1, "call": {"num_inference_steps": 1, "guidance_scale": 1.0}}]
    assert "num_inference_steps=1, guidance_scale=1.0" in (folder / "README.md").read_text()


@pytest.mark.exhaustive
def test_zero_steps_of_scm_export_the_teacher(make):
    recipe = make("scm", "train.steps=0")
    exported = load_file(train(recipe) / "unet" / "diffusion_pytorch_model.safetensors")
    teacher = StableDiffusion.load(recipe.teacher.path, torch.device("cpu")).denoiser.network.state_dict()
    changed = {key for key in teacher if not torch.equal(exported[key], teacher[key])}
    assert changed <= {"time_embedding.linear_1.weight"}  # adapted to the timesteps of the export's scheduler


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.first_by_default
def test_half_precision_teacher(make, precision):
    folder = train(make("scm", "train.steps=1", f"teacher.precision={precision}"))
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert pipe("a coat", num_inference_steps=1, output_type="pt").images.isfinite().all()


@pytest.mark.slow
def test_export_stores_the_captions_of_an_image_folder(whole_of):
    folder = whole_of("scm").folder / "pipeline"
    assert read_run(folder).prompts == str(folder / "training_prompts.txt")
    assert (folder / "training_prompts.txt").read_text() == "a coat\n"


@pytest.mark.slow
def test_persistent_nonfinite_gradients_end_the_run(make, monkeypatch):
    monkeypatch.setattr(StableDiffusion, "velocity", lambda self, x, *a: x * float("nan"))
    monkeypatch.setattr(setup, "HeldOut", lambda *a: None)
    with pytest.raises(
        ValueError,
        match=r"phase student were not finite in 10 consecutive steps.*Lower optimizers\.student\.lr",
    ):
        train(make("dmd", "train.steps=30"))


@pytest.mark.slow
def test_a_short_run_without_any_update_is_not_exported(make, monkeypatch):
    monkeypatch.setattr(StableDiffusion, "velocity", lambda self, x, *a: x * float("nan"))
    monkeypatch.setattr(setup, "HeldOut", lambda *a: None)
    recipe = make("scm", "train.steps=2")
    with pytest.raises(ValueError, match=r"phase student were not finite in any step, .* nothing is exported"):
        train(recipe)
    assert not (recipe.folder / "pipeline").exists()


@pytest.mark.slow
def test_scm_selects_the_second_time_and_writes_history_and_grid(make):
    recipe = make("scm", "train.steps=4", "train.evaluate_every=2", "train.tracker=tensorboard")
    folder = train(recipe)
    record = json.loads((folder / "distill.json").read_text())
    assert any(abs(record["times"][1] - angle) < 0.01 for angle in (0.5, 0.9))  # the nearest native timestep
    assert [call["num_steps"] for call in record["calls"]] == [1, 2]
    history = [json.loads(line) for line in (recipe.folder / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history] == [0, 2, 4]
    assert all(set(entry["held_out_frechet"]) == {"1", "2"} for entry in history)
    with Image.open(recipe.folder / "samples" / "00000004.png") as grid:
        assert grid.height >= 3 * 32
    assert list(recipe.folder.rglob("events.out.tfevents*"))


@pytest.mark.exhaustive
def test_resumed_run_has_one_record_per_interval_in_log_and_history(make):
    every = ["train.log_every=1", "train.evaluate_every=2"]
    recipe = make("dmd", *every, "train.steps=2")
    train(recipe)
    log = recipe.folder / "log.jsonl"
    with log.open("a") as file:  # left by a run that was killed in step 4
        file.write('{"step": 3, "seconds": 9.0, "student/loss": null}\n{"step": 4, "sec')
    train(make("dmd", *every, "train.steps=4"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all({"student/loss", "fake_score/loss", "student/gradient_norm"} <= set(line) for line in lines)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds) and lines[2]["student/loss"] is not None
    history = [json.loads(line) for line in (recipe.folder / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history] == [0, 2, 4]


@pytest.mark.slow
def test_finished_run_is_not_repeated(whole_of, capsys):
    recipe = whole_of("dmd")
    folder = recipe.folder / "pipeline"
    before = (folder / "distill.json").stat().st_mtime_ns
    assert train(recipe) == folder
    assert (folder / "distill.json").stat().st_mtime_ns == before
    assert "is finished" in capsys.readouterr().out


@pytest.mark.slow
def test_another_recipe_in_the_same_folder_is_rejected(whole_of):
    recipe = whole_of("dmd")
    other = replace(recipe, method={**recipe.method, "fake_score_updates": 1})
    with pytest.raises(ValueError, match="checkpoints of another recipe"):
        train(replace(other, train=replace(other.train, steps=6)))


@pytest.mark.slow
def test_regression_on_teacher_pairs(make):
    extra = ["method.regression_weight=0.5", "method.regression_distance=latent", "method.regression_pairs=6"]
    recipe = make("dmd", "train.steps=1", *extra)
    train(recipe)
    (shard,) = (recipe.folder / "cache").glob("pairs-*/*.safetensors")
    assert load_file(shard)["noise"].shape == (6, 4, 8, 8)


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint(files, tmp_path):
    words = [*FAST, f"output={tmp_path / 'runs'}", "train.steps=100000", "train.checkpoint_every=100000"]
    started = Fork(tmp_path / "process", fewstep, "train", files["dmd"], *words)
    folder = tmp_path / "runs" / "dmd"
    started.wait_for(r"[1-9]\d*/100000 \[")  # until the progress bar has moved
    time.sleep(0.5)
    started.process.terminate()
    assert started.wait() == EXIT_TERMINATED
    assert "run the same command again" in started.out
    assert checkpoint.saved_steps(folder / "checkpoints")
