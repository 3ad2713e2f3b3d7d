"""Paths of the checkout, overrides with which a recipe trains in a test, and parameters that are slow but the first."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes" / "pocket"
PLUGIN = ROOT / "tests" / "plugin"

FAST = [  # small, silent, saved often
    "train.batch_size=4",
    "train.evaluate_every=0",
    "train.evaluate_samples=6",
    "train.evaluate_teacher_steps=2",
    "train.checkpoint_every=2",
    "train.tracker=none",
]


def in_turn(rows: Iterable[str], columns: Sequence[object]) -> list[tuple[str, object]]:
    """Pairs of a row and a column: the first row with every column, each other row with one, in turn."""
    first, *rest = rows
    return [*((first, column) for column in columns), *zip(rest, itertools.cycle(columns))]


def first_by_default(values: Iterable[object]) -> list[object]:
    """Values, or tuples of them, of parameters; all but the first are exhaustive."""
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*row, marks=[pytest.mark.exhaustive] * bool(number)) for number, row in enumerate(rows)]


def first_is_quick(values: Iterable[object]) -> list[object]:
    """Values, or tuples of them, of parameters; the tests of all but the first are marked slow."""
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*row, marks=[pytest.mark.slow] * bool(number)) for number, row in enumerate(rows)]
