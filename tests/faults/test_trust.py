"""Hostile model folders through every loader and every command: no code of theirs runs, and one sentence says why.

The folders are in `tests.faults.hostile_folders`.
"""

import ast
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import save_file

from distill.checks.export_checks import check_student
from distill.exporting.verify import load_exported
from distill.training.meta_device import build_on_meta
from eval.pipelines.demo_pipelines import Demo
from eval.pipelines.loading import check_pipeline, load_pipeline
from teachers.describe import describe
from teachers.families.stable_diffusion import StableDiffusion
from teachers.loading.sketch import sketch
from tests.commands import fewstep
from tests.faults.hostile_folders import IGNORED, REFUSED, executed
from tests.settings import ROOT

CPU = torch.device("cpu")
# Every function that reads a pipeline of a stranger, as the commands call it.
LOADERS = {
    "train": lambda folder: StableDiffusion.load(str(folder), CPU).condition(["a coat"]),
    "dry run": lambda folder: sketch(str(folder), StableDiffusion),
    "memory": lambda folder: build_on_meta(StableDiffusion, str(folder), torch.float32),
    "describe": lambda folder: describe(str(folder)),
    "check": lambda folder: check_student(folder, CPU),
    "export": lambda folder: load_exported(StableDiffusionPipeline, folder, CPU),
    "eval": lambda folder: (check_pipeline(folder), load_pipeline(folder, CPU, torch.float32)),
    "sample": lambda folder: load_pipeline(folder, CPU, torch.float32),
    "demo": lambda folder: Demo([folder], CPU, "float32"),
    "allow pickle": lambda folder: load_pipeline(folder, CPU, torch.float32, allow_pickle=True),
}
UNREAD = ("pickle", "zipped")  # these attacks are on weights, which these loaders do not read
SKETCHES = ("dry run", "memory")


@pytest.fixture
def model(text_pipeline, tmp_path, monkeypatch) -> Path:
    """A copy of a pipeline, in the current folder, where Python looks for modules too."""
    folder = tmp_path / "model"
    shutil.copytree(text_pipeline, folder)
    call = {"num_inference_steps": 1, "guidance_scale": 1.0}
    record = {
        "format": 1,
        "name": "student",
        "method": "dmd",
        "options": {},
        "times": [1.5],
        "teacher": {"family": "stable_diffusion", "path": "model", "call": call, "sigma_data": 1.0},
        "calls": [{"num_steps": 1, "call": call}],
        "evaluation": {"prompts": "pocket", "features": "pixels", "reference": None},
        "cost": {"steps": 1, "seconds": 1.0, "samples": 1, "device": "cpu"},
    }
    (folder / "distill.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in [
        name for name in sys.modules if name not in before and name.partition(".")[0] in ("evil_mod", "model")
    ]:
        del sys.modules[name]


SLOW_ATTACKS = ("pickled", "zipped")  # every loader reads the other weights first


@pytest.mark.parametrize(
    "attack", [pytest.param(a, marks=pytest.mark.slow) if a.startswith(SLOW_ATTACKS) else a for a in REFUSED]
)
@pytest.mark.first_is_quick
def test_hostile_folders_are_refused_by_every_loader_and_run_nothing(model, attack, questions):
    REFUSED[attack](model)
    for name, load in LOADERS.items():
        if name in SKETCHES and attack.startswith(UNREAD):
            load(model)
            assert not executed(model), name
            continue
        with pytest.raises(ValueError) as error:
            load(model)
        assert not executed(model), name
        assert "\n" not in str(error.value) and 20 < len(str(error.value)) < 600, (name, str(error.value))
    assert not questions


@pytest.mark.exhaustive
def test_code_that_nothing_names_is_left_alone(model, questions, monkeypatch):
    for attack in IGNORED.values():
        attack(model)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(model)])
    for name, load in LOADERS.items():
        load(model)
        assert not executed(model), name
    assert not questions


# --- the Hub's cache and single files ---------------------------------------------------------------------------------


def in_hub_cache(folder: Path) -> Path:
    """A copy of a folder as the Hub's cache stores it: a snapshot of links to blobs."""
    repository = folder.parent / "hub" / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(file for file in folder.rglob("*") if file.is_file())):
        target = snapshot / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blobs / str(number))
        target.symlink_to(os.path.relpath(blobs / str(number), target.parent))
    return snapshot


@pytest.mark.slow
def test_a_snapshot_of_the_hub_is_loaded_and_its_code_is_not(model, questions):
    for attack in ("code beside the index", "code beside the networks", "code for generation"):
        IGNORED[attack](model)
    snapshot = in_hub_cache(model)
    load_pipeline(snapshot, CPU, torch.float32)
    describe(str(snapshot))
    assert not executed(model) and not questions


@pytest.mark.parametrize(
    "target", ["../../../../../secret", "/etc/hostname", "../../../../models--other--name/blobs/0"]
)
def test_links_of_a_snapshot_to_other_places_than_its_blobs_are_refused(model, target):
    snapshot = in_hub_cache(model)
    (snapshot / "tokenizer" / "tokenizer.json").unlink()
    (snapshot / "tokenizer" / "tokenizer.json").symlink_to(target)
    for load in (lambda: load_pipeline(snapshot, CPU, torch.float32), lambda: describe(str(snapshot))):
        with pytest.raises(ValueError, match=r"tokenizer\.json must not be a link to outside of"):
            load()


@pytest.mark.parametrize(
    "attack",
    ["os", "module beside the folder", "own package", "pipeline in a file", "auto_map of the tokenizer", "link"],
)
@pytest.mark.first_is_quick
def test_the_configuration_of_a_single_file_is_checked_too(model, attack, questions):
    (REFUSED["linked config"] if attack == "link" else REFUSED[attack])(model)
    save_file({"a": torch.zeros(1)}, model.with_suffix(".safetensors"))
    path = str(model.with_suffix(".safetensors"))
    for load in (
        lambda: StableDiffusion.load(path, CPU),
        lambda: sketch(path, StableDiffusion),
        lambda: describe(path),
    ):
        with pytest.raises(ValueError) as error:
            load()
        assert "\n" not in str(error.value) and not executed(model)
    assert not questions


@pytest.mark.parametrize("name", [["evil_mod", "EvilPipeline"], "StableDiffusionPipeline"])
def test_the_index_of_a_hub_id_is_checked_before_anything_is_downloaded(model, name, monkeypatch):
    values = {"_class_name": name, "unet": ["evil_mod", "Evil"]}
    monkeypatch.setattr(DiffusionPipeline, "load_config", lambda path, **_: values)
    monkeypatch.setattr(DiffusionPipeline, "download", lambda *_, **__: pytest.fail("downloaded"))
    for load in (lambda: StableDiffusion.load("owner/name", CPU), lambda: sketch("owner/name", StableDiffusion)):
        with pytest.raises(ValueError, match=r"_class_name of owner/name|the component unet must be a class of"):
            load()


# --- commands --------------------------------------------------------------------------------------------------------

FAST = ("train.steps=1", "train.batch_size=2", "train.evaluate_every=0", "train.tracker=none", "output=runs")
RECIPE = ("pocket/dmd", "teacher.path=./model", "method.regression_weight=1.0", "method.regression_pairs=4", *FAST)
COMMANDS = {
    "train": ("train", *RECIPE),
    "train --dry-run": ("train", *RECIPE, "--dry-run"),
    "pairs": ("pairs", *RECIPE),
    "memory": ("memory", *RECIPE),
    "describe": ("describe", "model"),
    "check": ("check", "model"),
    "check of a teacher": ("check", "teacher"),
    "export": ("export", "model"),
    "eval": ("eval", "model", "--features", "pixels", "--samples", "2", "--out", "report"),
    "eval of its teacher": ("eval", "student", "--features", "pixels", "--samples", "2", "--out", "report"),
    "sample": ("sample", "model", "--prompt", "a coat"),
    "demo": ("demo", "model", "--port", "0"),
}
ATTACKS = {  # and what the sentence says
    "module in the folder": "the component unet must be a class of diffusers, transformers",
    "pipeline in a file": "EvilPipeline",
    "auto_map of the text encoder": "names code of its repository",
    "shard above": "must list safetensors files in its own folder",
    "linked vocabulary": "must not be a link to outside of",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_hostile_folders_with_one_sentence(model, text_pipeline, command, questions, capsys):
    original = model.with_name("original")
    shutil.copytree(model, original)
    shutil.copytree(original, model.with_name("student"))
    for attack, words in ATTACKS.items():
        shutil.rmtree(model)
        shutil.copytree(original, model)
        shutil.rmtree(model.with_name("sub"), ignore_errors=True)
        REFUSED[attack](model)
        (model.with_name("teacher")).unlink(missing_ok=True)
        model.with_name("teacher").symlink_to(model)
        if command == "check of a teacher":
            (model / "distill.json").unlink()
        assert fewstep(*COMMANDS[command]) == 2, attack
        output = "".join(capsys.readouterr())
        assert output.count("error: ") == 1 and "Traceback" not in output, output
        assert words in output, output
        assert not executed(model), attack
    assert not questions


# --- explicit arguments ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_call_that_loads_a_repository_says_that_its_code_is_not_trusted():
    calls, silent = 0, []
    for package in ("teachers", "eval", "distill"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
                if name not in ("from_pretrained", "download", "load_dataset"):
                    continue
                calls += 1
                given = {word.arg: word.value for word in node.keywords}
                trusted = given.get("trust_remote_code")
                if not (isinstance(trusted, ast.Constant) and trusted.value is False):
                    silent.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert calls >= 9 and not silent
