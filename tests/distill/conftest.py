"""Fixtures of the tests of exports and checks: tiny teachers of every family, and a table of differences."""

import functools

import pytest
import torch

from distill.config.registry import TEACHERS, find
from tests.teachers.families.variants import VARIANTS
from tests.teachers.saved import saved

DIFFERENCES = pytest.StashKey[dict[str, dict[str, str]]]()


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory, tokenizer):
    """Function folder_of(name) -> (family, folder) of a saved random pipeline; each is built once."""
    return saved(tmp_path_factory.mktemp("variants"), tokenizer, VARIANTS)


@pytest.fixture(scope="session")
def teacher_of(folder_of):
    """Function teacher_of(name) -> the float32 teacher; each is loaded once."""

    @functools.cache
    def load(name):
        family, folder = folder_of(name)
        return find(TEACHERS, family).load(str(folder), torch.device("cpu"))

    return load


def pytest_configure(config):
    config.stash[DIFFERENCES] = {}


@pytest.fixture
def largest(request):
    """Function largest(name, column, checked) that adds an export's differences to the table at the end of the run."""

    def write(name, column, checked):
        steps = ",".join(map(str, checked["steps"]))
        request.config.stash[DIFFERENCES].setdefault(name, {})[column] = f"{checked['difference']:.1e} ({steps})"

    return write


def pytest_terminal_summary(terminalreporter, config):
    """Print the largest difference of every export from its student, the numbers of steps, and the largest of all."""
    rows = config.stash[DIFFERENCES]
    if not rows:
        return
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    widths = [max(len(column), len("0.0e+00 (1,2)")) + 2 for column in columns]
    table = {"largest difference (steps)": {column: column for column in columns}} | rows
    for name, row in table.items():
        cells = (f"{row.get(column, '-'):>{width}}" for column, width in zip(columns, widths, strict=True))
        terminalreporter.write_line(f"{name:36}" + "".join(cells))
    worst = max((float(cell.split()[0]), name, column) for name, row in rows.items() for column, cell in row.items())
    terminalreporter.write_line("largest of all: {:.1e} ({}, {})".format(*worst))
