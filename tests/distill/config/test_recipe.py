"""Errors in recipes: one line with the key and the fix, exit code 2, before any weights are loaded."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from diffusers import DiffusionPipeline
from PIL import Image

from benchmarks.plans import settings
from distill.config.recipe import load, method_options
from distill.config.typed import build, document
from distill.methods.dmd_options import DMDOptions
from distill.methods.rcm import RCMOptions
from distill.methods.scm import SCMOptions
from distill.methods.sid import SIDOptions
from distill.train import train
from eval.config.protocol import read_protocol
from tests.settings import ROOT

GOOD = """\
name: x
teacher: {{family: stable_diffusion, path: {path}, guidance: 2.0}}
data: {{prompts: pocket}}
method: {{name: dmd}}
"""


@pytest.fixture
def recipe(tmp_path, text_pipeline):
    file = tmp_path / "recipe.yaml"
    file.write_text(GOOD.format(path=text_pipeline) + f"output: {tmp_path / 'runs'}\n")
    return file


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.steps=5", "unknown key 'trian', did you mean 'train'"),
        ("train.stepz=5", "unknown key 'train.stepz', did you mean 'steps'"),
        ("train.steps=many", "train.steps must be a whole number, got 'many'"),
        ("train.steps=1.5", "train.steps must be a whole number, got 1.5"),
        ("train.steps=true", "train.steps must be a whole number, got True"),
        ("train.ema=yes please", "train.ema must be a number, got 'yes please'"),
        ("train.precision=fp15", "did you mean 'fp16'"),
        ("teacher.family=stable_difusion", "did you mean 'stable_diffusion'"),
        ("method.name=dmt", "did you mean 'dmd'"),
        ("method.name=null", "the key 'method.name' is missing"),
        ("method.fake_score_update=3", "did you mean 'fake_score_updates'"),
        ("method.noise_range=[0.1]", "method.noise_range must be a list of 2 values"),
        ("optimizers.studnet.lr=1", "unknown key 'optimizers.studnet', did you mean 'student'"),
        ("train.batch_size=0", "train.batch_size must be at least 1, got 0"),
        ("train.accumulation=7", "train.batch_size must be a multiple of train.accumulation"),
        ("data.limit=-1", "data.limit must be at least 0, got -1"),
        ("memory={tier: lora, offload_teacher: true}", "memory.offload_teacher must be false with memory.tier=lora"),
        ("train.ema=1.5", "train.ema must be below 1, got 1.5"),
        ("name=a/b", "plain folder name"),
        ("name=..", "plain folder name"),
        ("teacher.path=${oc.env:HOME}", "interpolation"),
        ("teacher.sigma_data=-1", "teacher.sigma_data must be positive, got -1"),
        ("optimizers.student.warmup=-1", "optimizers.student.warmup must be at least 0, got -1"),
        ("train.max_norm=0", "train.max_norm must be positive, got 0"),
        ("method.fake_score_updates=0", "method.fake_score_updates must be at least 1, got 0"),
        ("method.noise_range=[0.9, 0.1]", "method.noise_range must increase"),
        ("method.r1_weight=1", "method.r1_weight must be 0 without a discriminator"),
        ("method={name: rcm, dmd: {gan_weight: -1}}", "method.dmd.gan_weight must be at least 0, got -1"),
        ("method={name: rcm, scm: {guidances: [1.0]}}", "method.scm.guidances must be empty"),
        (
            "method={name: scm, tangent: finite_difference, tangent_precision: tf32}",
            "method.tangent_precision must be float32 .* got tf32",
        ),
        ("method={name: scm, second_times: [2.0]}", "method.second_times must be below 1.5708"),
        ("evaluation.features=pocke", "did you mean 'pocket'"),
        ("evaluation.reference=/gone", "evaluation.reference must be .* /gone does not exist"),
        ("evaluation.prompts=gone.txt", r"gone\.txt"),
        ("teacher.family=analytic", "no diffusers pipeline"),
        ("nonsense", "an override must have the form key=value"),
        ("train=3", "group of keys"),
    ],
)
@pytest.mark.first_is_quick
def test_wrong_overrides_are_errors(recipe, override, message):
    with pytest.raises(ValueError, match=message):
        load(recipe, [override])


def test_keys_that_cannot_be_combined(recipe):
    with pytest.raises(ValueError, match=r"memory\.eight_bit cannot be combined with train\.channels_last"):
        load(recipe, ["memory.eight_bit=true", "train.channels_last=true"])


@pytest.mark.parametrize(("overrides", "message"), [
    (["data.prompts=pocket", "data.column=text"], r"data\.column must be null with data\.prompts=pocket, got 'text'"),
    (["data.latents=x", "data.column=text"], r"data\.column must be null with data\.latents, got 'text'"),
    (
        ["evaluation.validation_prompts=[a bag]", "train.evaluate_every=0"],
        r"evaluation\.validation_every must be at least 1 with train\.evaluate_every=0",
    ),
])  # fmt: skip
def test_options_that_would_be_ignored_are_refused(recipe, overrides, message):
    with pytest.raises(ValueError, match=message):
        load(recipe, overrides)


def test_teacher_family_is_detected(recipe):
    recipe.write_text(recipe.read_text().replace("family: stable_diffusion, ", ""))
    assert load(recipe).teacher.family == "stable_diffusion"
    assert load(recipe, ["teacher.path=pocket"]).teacher.family == "stable_diffusion"
    with pytest.raises(ValueError, match=r"\./gone"):
        load(recipe, ["teacher.path=./gone"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.prompts=gone.txt"], r"gone\.txt"),
        (["data.prompts=null"], "data.prompts must be set"),
        (["data.images=gone"], "the folder of images gone does not exist"),
        (["method.name=scm", "data.prompts=null"], "data.images must be set"),
        (["teacher.path=./gone"], r"\./gone"),
        (["output=/proc/nowhere"], "cannot be written"),
    ],
)
def test_data_and_teacher_are_checked_before_weights_are_loaded(recipe, overrides, message, monkeypatch, tmp_path):
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *a, **k: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match=message):
        train(load(recipe, overrides))
    assert not (tmp_path / "runs").exists()


def test_file_that_is_not_an_image(recipe, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "notes.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"notes\.png cannot be read as an image"):
        train(load(recipe, [f"data.images={folder}"]))
    assert not (tmp_path / "runs").exists()


def test_truncated_image(recipe, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.effect_noise((64, 64), 90).save(folder / "cut.jpg")
    complete = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(complete[: len(complete) // 2])
    (folder / "cut.txt").write_text("a coat")
    with pytest.raises(ValueError, match=r"cut\.jpg cannot be read as an image"):
        train(load(recipe, [f"data.images={folder}"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not valid YAML"),
        ("- 1\n- 2", "keys and values"),
        ("name: x", "the key 'teacher' is missing"),
        ("", "missing"),
        ("name: x\nteacher: {family: 3, path: p}\nmethod: {name: dmd}", "teacher.family must be a string"),
        ("name: !!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_files_that_are_not_recipes(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load(file)


@dataclass
class PlainOptions:
    """Options of a plug-in that do not inherit from `Checked`."""

    pairs: int = 10
    scales: tuple[float, ...] = ()


def test_plain_dataclasses_of_options_are_converted_and_checked():
    assert build(PlainOptions, {"scales": [1, 2]}, "method") == PlainOptions(scales=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"method\.pairs must be a whole number, got 'many'"):
        build(PlainOptions, {"pairs": "many"}, "method")


@pytest.mark.parametrize("options", [DMDOptions, SCMOptions, RCMOptions, SIDOptions])
def test_every_option_of_a_method_is_documented(options):
    documented = document(options, "method")
    assert all(entry.help.endswith(".") and entry.key.startswith("method.") for entry in documented)
    assert len(documented) >= 10


def test_missing_recipe_suggests_a_similar_name(recipe):
    with pytest.raises(ValueError, match=r"did you mean '.*recipe\.yaml'"):
        load(recipe.with_name("recipee.yaml"))


@pytest.mark.parametrize("file", sorted(Path("recipes").rglob("*.yaml")), ids=str)
@pytest.mark.first_is_quick
def test_every_recipe_starts_with_its_command_and_is_valid(file):
    first = file.read_text().splitlines()[0]
    if "eval" in file.parts:
        assert first == f"# fewstep eval RUN --protocol {file}"
    elif "accelerate" in file.parts:
        assert first.startswith(f"# accelerate launch --config_file {file} ")
    else:
        assert first == f"# fewstep train {file.relative_to('recipes').with_suffix('').as_posix()}"
    if "eval" in file.parts:
        assert read_protocol(file)
        return
    if "accelerate" in file.parts:
        load_config_from_file(str(file))
    else:
        method_options(load(file))


def test_the_plan_of_every_full_size_recipe_is_stored():
    """Of the recipe as it is now. Planning builds its teacher and method, so it also checks options that need both."""
    stored = json.loads((ROOT / "benchmarks" / "results" / "plans.json").read_text())
    recipes = [file.stem for file in (ROOT / "recipes").glob("*.yaml") if "cifar10" not in file.stem]
    assert {name: row["settings"] for name, row in stored.items()} == {name: settings(name) for name in recipes}


def test_checking_a_recipe_with_a_family_reads_nothing_from_the_hub(monkeypatch):
    def connect(*_, **__):
        raise AssertionError("the Hub is contacted")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
    for name in ("sd15_dmd", "sdxl_dmd2_lora", "sana_scm"):
        assert load(f"recipes/{name}.yaml").teacher.path.count("/") == 1
