"""The command line inside the test's own process."""

from collections.abc import Sequence

from distill.cli import fewstep as group
from eval.__main__ import demo as demo_command
from eval.__main__ import evaluate
from teachers.support.errors import run_click


def fewstep(*words: object) -> int:
    """`fewstep WORDS`; returns the exit code."""
    return run_click(group, [str(word) for word in words], "fewstep")


def eval_main(words: Sequence[str]) -> int:
    """`fewstep eval WORDS`; returns the exit code."""
    return run_click(evaluate, words, "fewstep eval")


def demo_main(words: Sequence[str]) -> int:
    """`fewstep demo WORDS`; returns the exit code."""
    return run_click(demo_command, words, "fewstep demo")
