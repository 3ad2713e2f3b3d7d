"""Paths of the checkout, overrides with which a recipe trains in a test, and pairs of parameters."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

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
