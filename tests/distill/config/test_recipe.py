"""A user's mistakes: one clear sentence that names the culprit and the mend, exit code 2, before any weights load."""

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from PIL import Image

from distill.config.recipe import load, method_options
from distill.train import train
from eval.config.protocol import read_protocol

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
    ("override", "sentence"),
    [
        ("trian.steps=5", "unknown key 'trian', did you mean 'train'"),
        ("train.stepz=5", "unknown key 'train.stepz', did you mean 'steps'"),
        ("train.steps=many", "train.steps has to be a whole number, not 'many'"),
        ("train.steps=1.5", "train.steps has to be a whole number, not 1.5"),
        ("train.steps=true", "train.steps has to be a whole number"),
        ("train.ema=yes please", "train.ema has to be a number"),
        ("train.precision=fp15", "did you mean 'fp16'"),
        ("teacher.family=stable_difusion", "did you mean 'stable_diffusion'"),
        ("method.name=dmt", "did you mean 'dmd'"),
        ("method.name=null", "the key 'method.name' is missing"),
        ("method.fake_score_update=3", "did you mean 'fake_score_updates'"),
        ("method.noise_range=[0.1]", "has to be a list of 2 values"),
        ("optimizers.studnet.lr=1", "unknown key 'optimizers.studnet', did you mean 'student'"),
        ("train.batch_size=0", "at least 1"),
        ("train.accumulation=7", "does not divide"),
        ("data.limit=-1", "at least 0"),
        ("memory={tier: lora, offload_teacher: true}", "goes with memory.tier=full"),
        ("train.ema=1.5", r"in \[0, 1\)"),
        ("name=a/b", "plain folder name"),
        ("name=..", "plain folder name"),
        ("teacher.path=${oc.env:HOME}", "interpolation"),
        ("teacher.sigma_data=-1", "positive"),
        ("optimizers.student.warmup=-1", "cannot be negative"),
        ("train.max_norm=0", "stop all training"),
        ("evaluation.features=pocke", "did you mean 'pocket'"),
        ("evaluation.reference=/gone", "there is no evaluation.reference"),
        ("evaluation.prompts=gone.txt", "there is no file of prompts"),
        ("teacher.family=analytic", "no pipeline to export"),
        ("nonsense", "write key=value"),
        ("train=3", "group of keys"),
    ],
)
def test_overrides(recipe, override, sentence):
    with pytest.raises(ValueError, match=sentence):
        load(recipe, [override])


def test_keys_that_exclude_each_other(recipe):
    with pytest.raises(ValueError, match="leave one of them out"):
        load(recipe, ["memory.eight_bit=true", "train.channels_last=true"])


def test_a_teacher_says_its_family_itself(recipe):
    recipe.write_text(recipe.read_text().replace("family: stable_diffusion, ", ""))
    assert load(recipe).teacher.family == "stable_diffusion"
    assert load(recipe, ["teacher.path=pocket"]).teacher.family == "stable_diffusion"
    with pytest.raises(ValueError, match=r"there is no pipeline folder \./gone"):
        load(recipe, ["teacher.path=./gone"])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.prompts=gone.txt"], "there is no file of prompts gone.txt"),
        (["data.prompts=null"], "give data.prompts"),
        (["data.images=gone"], "there is no folder of images gone"),
        (["method.name=scm", "data.prompts=null"], "give data.images"),
        (["teacher.path=./gone"], "there is no pipeline folder ./gone"),
        (["output=/proc/nowhere"], "cannot be written"),
    ],
)
def test_what_a_recipe_names_is_checked_before_weights_load(recipe, overrides, sentence, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "diffusers.DiffusionPipeline.from_pretrained", lambda *a, **k: pytest.fail("weights were loaded")
    )
    with pytest.raises(ValueError, match=sentence):
        train(load(recipe, overrides))
    assert not (tmp_path / "runs").exists()


def test_a_non_image_among_the_images(recipe, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "notes.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"notes\.png is not an image"):
        train(load(recipe, [f"data.images={folder}"]))
    assert not (tmp_path / "runs").exists()


def test_a_truncated_image(recipe, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.effect_noise((64, 64), 90).save(folder / "cut.jpg")
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.txt").write_text("a coat")
    with pytest.raises(ValueError, match=r"cut\.jpg is not an image"):
        train(load(recipe, [f"data.images={folder}"]))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1", "not readable as YAML"),
        ("- 1\n- 2", "keys and values"),
        ("name: x", "the key 'teacher' is missing"),
        ("", "missing"),
        ("name: x\nteacher: {family: 3, path: p}\nmethod: {name: dmd}", "teacher.family has to be a text"),
        ("name: !!python/object/apply:os.system ['true']", "not readable as YAML"),
    ],
)
def test_files_that_are_no_recipes(tmp_path, text, sentence):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load(file)


def test_a_missing_recipe_names_its_neighbours(recipe):
    with pytest.raises(ValueError, match=r"did you mean '.*recipe\.yaml'"):
        load(recipe.with_name("recipee.yaml"))


def test_the_command_line_says_one_sentence_and_exits_with_2(recipe):
    done = subprocess.run(
        [sys.executable, "-m", "distill.train", str(recipe), "train.stepz=5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: unknown key 'train.stepz'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("file", sorted(Path("recipes").rglob("*.yaml")), ids=str)
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
