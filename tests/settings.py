"""Paths of the checkout, overrides with which a recipe trains in a test, and parameters that are slow but the first."""

import itertools
from collections.abc import Collection, Iterable, Sequence
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


EXHAUSTIVE = [pytest.mark.exhaustive, pytest.mark.slow]
# Families and variants that stand for all of one base class where a test repeats another one's conclusion.
REPRESENTATIVES = {
    "Stable Diffusion 1.5",
    "Stable Diffusion XL",
    "Stable Diffusion 3.5",
    "Flux.1 dev",
    "DiT",
    "Sana",
    "EDM, CIFAR-10",
    "unconditional UNet",
    "Wan 2.1",
    "CogVideoX 1.5",
    "Stable Audio, short",
    "Qwen-Image",
    "Z-Image",
    "Kandinsky 3",
}


def representatives(cases: Iterable[object], chosen: Collection[object] = REPRESENTATIVES) -> list[object]:
    """Cases of a parameter; the tests of all that are not about one of `chosen` are marked exhaustive.

    Args:
        cases: Names, or tuples that begin with one.
        chosen: Names.
    """
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*row, marks=() if row[0] in chosen else EXHAUSTIVE) for row in rows]


def first_by_default(values: Iterable[object]) -> list[object]:
    """Values, or tuples of them, of parameters; the tests of all but the first are marked exhaustive."""
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*row, marks=EXHAUSTIVE if number else ()) for number, row in enumerate(rows)]


def first_is_quick(values: Iterable[object]) -> list[object]:
    """Values, or tuples of them, of parameters; the tests of all but the first are marked slow."""
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*row, marks=[pytest.mark.slow] * bool(number)) for number, row in enumerate(rows)]
