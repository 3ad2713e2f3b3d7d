"""The command line inside the test's own process, and in forks of it; comparisons time few calls."""

from collections.abc import Sequence
from functools import partial
from importlib import import_module

import click
import pytest

from distill.cli import fewstep as group
from eval.__main__ import demo as demo_command
from eval.__main__ import evaluate
from eval.config.options import Timing
from teachers.support.errors import run_click

ONE_OR_TWO_CALLS = Timing(repeats=2, seconds=0.1, min_repeats=1, part_repeats=1)


def fewstep(*words: object) -> int:
    """`fewstep WORDS`; returns the exit code."""
    return _run(group, words, "fewstep")


def eval_main(words: Sequence[str]) -> int:
    """`fewstep eval WORDS`; returns the exit code."""
    return _run(evaluate, words, "fewstep eval")


def demo_main(words: Sequence[str]) -> int:
    """`fewstep demo WORDS`; returns the exit code."""
    return _run(demo_command, words, "fewstep demo")


def _run(command: click.Command, words: Sequence[object], name: str) -> int:
    comparison = import_module("eval.compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "compare", partial(comparison.compare, timing=ONE_OR_TWO_CALLS))
        return run_click(command, [str(word) for word in words], name)
