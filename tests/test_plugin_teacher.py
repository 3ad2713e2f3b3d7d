"""A teacher of another package, the digits of tests/plugin, from training to every report."""

import csv
import importlib
import json
import math
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from distill.check import check
from distill.checks.teacher_checks import check_teacher
from distill.config.recipe import Recipe, load
from distill.methods.jvp import finite_difference, jvp
from distill.sample import sample_run
from distill.train import train
from distill.training import setup
from distill.training.memory_plan import plan, plan_lines
from eval.compare import compare
from eval.features.extractors import extractor, prompt_judge
from eval.pipelines.demo_pipelines import Demo
from eval.pipelines.demo_requests import Request
from eval.pipelines.loading import load_pipeline
from teachers.core.few_step import native_levels
from teachers.core.sampling import sample, teacher_endpoint
from teachers.describe import describe
from teachers.loading.registry import load_teacher
from teachers.media import ANY_IMAGE
from tests.commands import ONE_OR_TWO_CALLS
from tests.plugins import install
from tests.settings import PLUGIN

CPU = torch.device("cpu")
PATH = PLUGIN / "fewstep_digits" / "weights" / "pipeline"
EVALUATION = {"samples": 200, "batch_size": 100, "few_steps": (1,), "lpips": None, "timing": ONE_OR_TWO_CALLS}
STEPS = {"dmd": 120, "scm": 400}  # DMD reaches the bounds below before the end of its recipe
FIGURES = ("name", "nfe", "frechet_distance", "precision", "recall", "coverage", "prompt_agreement")


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory):
    """The package of the digits, installed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        points = {"distill.teachers": ["digits = fewstep_digits.family:Digits"]}
        install(monkeypatch, tmp_path_factory.mktemp("site"), "fewstep-plugin", points)
        monkeypatch.syspath_prepend(PLUGIN)
        yield importlib.import_module("fewstep_digits")


@pytest.fixture(scope="module")
def images(plugin, tmp_path_factory) -> Path:
    """The digits as a folder of captioned images."""
    folder = tmp_path_factory.mktemp("images")
    pixels, labels = plugin.digits()
    rows = []
    for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(folder / f"{number:04}.png")
        rows.append(json.dumps({"file_name": f"{number:04}.png", "text": plugin.CLASSES[label]}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def recipe(images, tmp_path):
    """Function that writes and reads a recipe of the digits."""

    def make(method: str, *overrides: str) -> Recipe:
        file = tmp_path / f"{method}.yaml"
        file.write_text((PLUGIN / "recipes" / f"digits_{method}.yaml").read_text())
        shared = [f"teacher.path={PATH}", f"data.images={images}", f"output={tmp_path / 'runs'}", "train.tracker=none"]
        return load(file, [*shared, *overrides])

    return make


@pytest.fixture(scope="module")
def teacher():
    return load_teacher(PATH)


@pytest.mark.slow
def test_the_family_is_found_and_declares_its_defaults(teacher, recipe):
    assert type(teacher).__name__ == "Digits"
    assert teacher.denoiser.path.sigma_data == 0.8
    chosen = recipe("dmd")
    assert (chosen.teacher.family, chosen.teacher.sigma_data) == ("digits", None)
    assert setup.load_teacher(chosen, CPU).denoiser.path.sigma_data == 0.8
    assert type(teacher).problems() == []


@pytest.mark.slow
def test_sigma_data_is_that_of_the_family_unless_it_is_given(teacher, recipe):
    family = type(teacher)
    for made in (family.load(str(PATH), CPU), family.wrap(teacher.stock), load_teacher(teacher.stock)):
        assert made.denoiser.path.sigma_data == 0.8
    assert load_teacher(PATH, sigma_data=0.5).denoiser.path.sigma_data == 0.5
    assert setup.load_teacher(recipe("dmd", "teacher.sigma_data=0.5"), CPU).denoiser.path.sigma_data == 0.5


@pytest.mark.slow
def test_lora_trains_and_exports_without_a_time_embedding_of_diffusers(recipe):
    small = ["train.steps=1", "train.batch_size=4", "train.evaluate_every=0", "train.evaluate_samples=4"]
    folder = train(recipe("dmd", "memory.tier=lora", "memory.rank=4", "name=lora", *small))
    pipe = load_pipeline(folder, CPU, torch.float32)
    assert not any("lora" in name for name in pipe.vit.state_dict())
    assert not (folder / "lora").exists()
    assert check(str(folder)) == 0


def test_the_tangent_is_exact(teacher):
    """Through `nn.TransformerEncoderLayer` and `nn.MultiheadAttention`, in float64."""
    denoiser = teacher.student().double()
    x, direction = torch.randn(2, 2, 1, 8, 8, dtype=torch.float64)
    t = torch.tensor([0.4, 1.2], dtype=torch.float64)
    cond = teacher.condition(["7", ""])
    # The network receives its timestep in float32, which limits a finite difference in time.
    for along_t, step, tolerance in ((0.0, 1e-6, 1e-7), (1.0, 1e-3, 1e-3)):
        primals, tangents = (x, t), (direction, along_t * torch.ones_like(t))
        value, exact = jvp(lambda x, t: denoiser.velocity(x, t, cond), primals, tangents)
        _, approximate = finite_difference(lambda x, t: denoiser.velocity(x, t, cond), primals, tangents, step)
        assert torch.allclose(value, denoiser.velocity(x, t, cond), atol=1e-9)
        assert (exact - approximate).norm() < tolerance * exact.norm()


@pytest.mark.slow
def test_condition_latents_and_trajectory_equal_the_pipeline(teacher):
    pipe = load_pipeline(PATH, CPU, torch.float32)
    noise = torch.randn(4, 1, 8, 8)
    prompts = ["0", "three", "7", "nine"]
    levels = native_levels(teacher.denoiser.path, teacher.denoiser.path.solver_times(20)[:-1])
    expected = ANY_IMAGE.received(pipe([0, 3, 7, 9], sigmas=levels, scale=2.0, noise=noise.clone()))
    cond = teacher.condition(prompts)
    with torch.no_grad():
        x0 = teacher_endpoint(teacher, noise, cond, 20, 2.0)
    difference = (teacher.decode(x0) / 2 + 0.5).clamp(0, 1) - expected
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("times", [[math.pi / 2], [math.pi / 2, 0.7], [1.2, 0.6, 0.3]])
@pytest.mark.slow
def test_export_equals_the_student(teacher, times, tmp_path):
    student = teacher.student()
    pipeline = teacher.pipeline(student, times)
    pipeline.save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path, CPU, torch.float32)
    noise, rng = torch.randn(2, 1, 8, 8), torch.Generator().manual_seed(3)
    call = teacher.calls(len(times), times)
    drawn = ANY_IMAGE.received(pipe([1, 2], noise=noise.clone(), rng=torch.Generator().manual_seed(3), **call))
    with torch.no_grad():
        cond = teacher.condition(["1", "2"])
        x0 = sample(student, noise, times, cond, lambda: torch.randn(2, 1, 8, 8, generator=rng))
    assert ((teacher.decode(x0) / 2 + 0.5).clamp(0, 1) - drawn).abs().max() < 1e-4


@pytest.mark.exhaustive
def test_describe_and_the_memory_plan_read_the_configuration_only(recipe):
    text = describe(str(PATH))
    assert "digits (DigitsPipeline)" in text and "rectified flow" in text and "8 x 8, from 1 x 8 x 8" in text
    chosen = recipe("dmd", "method.gan_weight=0.01")
    assert plan(chosen, 8).weights > 0
    assert any("activations" in line for line in plan_lines(chosen, 8, CPU))


@pytest.mark.slow
def test_fewstep_check_passes(capsys):
    """The pipeline passes its condition by position, evaluates guidance apart, and has other names of arguments."""
    assert check(str(PATH)) == 0, capsys.readouterr().out


WRONG = {
    "condition": {"condition": lambda self, prompts: {"digit": torch.tensor([3 if p else 10 for p in prompts])}},
    "null condition": {"encode_null_condition": lambda self: {"digit": torch.tensor([0])}},
    "decode": {"decode": lambda self, latents: latents.expand(-1, 3, -1, -1)},
}


@pytest.mark.slow
@pytest.mark.parametrize("row", WRONG)
def test_a_wrong_family_fails_the_check_that_names_the_fault(row, teacher):
    wrong = type("Wrong", (type(teacher),), WRONG[row])
    failed = [result.name for result in check_teacher(wrong, str(PATH), CPU) if not result.passed]
    assert row in failed


def test_features_and_judge_come_from_the_family(plugin):
    pixels, labels = plugin.digits()
    colour = pixels[1500:].expand(-1, 3, -1, -1)
    assert extractor("digits")(colour).shape == (297, 32)
    prompts = [str(label) for label in labels[1500:].tolist()]
    assert prompt_judge("digits")(colour, prompts).mean() > 0.9
    assert prompt_judge("digits")(colour, ["seven"] * 297).mean() < 0.2


def distil(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train, stop half way, resume and export; returns the pipeline's folder."""
    module = importlib.import_module("distill.train")
    step = module.train_step

    def stopping_step(state, *rest):
        metrics = step(state, *rest)
        if state.step == recipe.train.steps // 2:
            signal.raise_signal(signal.SIGTERM)
        return metrics

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_step", stopping_step)
        with pytest.raises(SystemExit):
            train(recipe)
    return train(recipe)


def check_again(recipe: Recipe, rows: list[dict], tmp_path: Path) -> None:
    """A second report of the same run has the same figures to the last digit."""
    again = compare([recipe.folder], tmp_path / "second", **EVALUATION)["rows"]
    first, second = ([{key: row[key] for key in FIGURES} for row in report] for report in (rows, again))
    assert first == second
    assert not any(row["from_cache"] for row in again)


def check_outputs(recipe: Recipe, pipeline: Path, report: Path) -> None:
    """The student is in every file of the report, its card has calls that run, and samples and demo load it."""
    name = f"{recipe.name}, 1 step"
    assert name in (report / "report.html").read_text() and name in (report / "report.md").read_text()
    assert name in [row["name"] for row in json.loads((report / "report.json").read_text())["rows"]]
    with (report / "report.csv").open(newline="") as file:
        assert name in [row["name"] for row in csv.DictReader(file)]
    assert recipe.name in (report / "model-index.yaml").read_text()
    card = (pipeline / "README.md").read_text()
    assert "from fewstep_digits.pipeline import DigitsPipeline" in card
    assert "images = pipe(digits=[0], steps=1, scale=1.0).images" in card and "**keep `scale=1.0` in the call**" in card
    assert sample_run(recipe.folder, ["7", "seven"], 2, 1, 0, CPU)[0].shape == (4, 3, 8, 8)
    demo = Demo([recipe.folder], CPU, "float32")
    assert [image.evaluations for image in demo.generate(Request("3", 0, 1, 5))] == [
        10,
        1,
    ]  # guidance doubles the teacher's


@pytest.mark.parametrize("method", ["dmd", "scm"])
@pytest.mark.exhaustive
def test_students_of_the_digits(method, recipe, tmp_path, monkeypatch):
    """A one-step student: within a factor of five of the teacher's 20 steps, and far better than one step of it."""
    few = [f"train.{key}={STEPS[method]}" for key in ("steps", "evaluate_every", "checkpoint_every")]
    chosen = recipe(method, *few, "train.evaluate_samples=100")
    pipeline = distil(chosen, monkeypatch)
    rows = compare([chosen.folder], tmp_path / "first", **EVALUATION)["rows"]
    if method == "dmd":
        check_again(chosen, rows, tmp_path)
    check_outputs(chosen, pipeline, tmp_path / "first")
    assert check(str(pipeline)) == 0
    teacher, teacher_one, student = rows[0], rows[1], next(row for row in rows if row["method"] == method)
    assert student["frechet_distance"] < 0.5 * teacher_one["frechet_distance"]
    assert student["frechet_distance"] < 5 * teacher["frechet_distance"]
    assert student["prompt_agreement"] > teacher["prompt_agreement"] - 0.1
