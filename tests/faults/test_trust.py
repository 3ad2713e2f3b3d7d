"""Hostile model folders through every loader and every command: no code of theirs runs, and one sentence says why.

The folders are in `tests.faults.hostile_folders`.
"""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from distill.checks.export_checks import check_student
from distill.exporting.verify import load_exported
from distill.training.meta_device import build_on_meta
from eval.pipelines.demo_pipelines import Demo
from eval.pipelines.generate import check_pipeline, load_pipeline
from teachers.describe import describe
from teachers.families.stable_diffusion import StableDiffusion
from teachers.loading.sketch import sketch
from tests.faults.hostile_folders import CANARY, IGNORED, REFUSED

CPU = torch.device("cpu")
# Every function that reads a pipeline of a stranger, as the commands call it.
LOADERS = {
    "train": lambda folder: StableDiffusion.load(str(folder), CPU).condition(["a coat"]),
    "dry run": lambda folder: sketch(str(folder), StableDiffusion),
    "memory": lambda folder: build_on_meta(StableDiffusion, str(folder), torch.float32),
    "describe": lambda folder: describe(str(folder)),
    "check": lambda folder: check_student(folder, CPU),
    "export": lambda folder: load_exported(StableDiffusionPipeline, folder, CPU),
    "eval": lambda folder: check_pipeline(folder),
    "sample": lambda folder: load_pipeline(folder, CPU, torch.float32),
    "demo": lambda folder: Demo([folder], CPU, "float32"),
    "allow pickle": lambda folder: load_pipeline(folder, CPU, torch.float32, allow_pickle=True),
}
UNREAD = ("pickle", "zipped")  # these attacks are on weights, which these loaders do not read
SKETCHES = ("dry run", "memory")


@pytest.fixture
def questions(monkeypatch) -> list[str]:
    """The questions that were asked; every one is answered with yes."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    return asked


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


def executed(folder: Path) -> bool:
    return (folder.parent / CANARY).exists()


@pytest.mark.parametrize("attack", REFUSED)
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


@pytest.mark.parametrize("attack", IGNORED)
def test_code_that_nothing_names_is_left_alone(model, attack, questions, monkeypatch):
    IGNORED[attack](model)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(model)])
    for name, load in LOADERS.items():
        load(model)
        assert not executed(model), name
    assert not questions
