"""The smallest run that uses every part of the loop: a tiny pipeline with the pocket teacher's prompts and latents."""

import io
import sys
from collections.abc import Callable

import pytest

from distill.config.recipe import Recipe, load
from tests.settings import RECIPES

FAST = [
    "train.batch_size=2",
    "train.log_every=1",
    "train.checkpoint_every=1",
    "train.evaluate_every=0",
    "train.evaluate_samples=2",
    "train.evaluate_teacher_steps=1",
    "train.tracker=none",
]


@pytest.fixture
def recipe(text_pipeline, tmp_path) -> Callable[..., Recipe]:
    """recipe("key=value", ..., name=..., method=...): a recipe whose run is in the test's folder."""

    def make(*overrides: str, name: str = "run", method: str = "dmd") -> Recipe:
        fixed = [f"output={tmp_path / 'runs'}", f"teacher.path={text_pipeline}", f"name={name}"]
        return load(RECIPES / f"{method}.yaml", [*FAST, *fixed, *overrides])

    return make


@pytest.fixture
def questions(monkeypatch) -> list[str]:
    """The questions that were asked; every one is answered with yes."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    return asked
