"""Fixtures of the teachers' tests: tiny pipelines, and a table of results at the end of the run."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.teachers.saved import saved
from tests.teachers.tiny_pipelines import BUILDERS

COLUMNS = (
    *("wrap", "condition", "guidance", "DMD step", "SiD step", "sCM step", "LCM step"),
    *("export", "reload, 1 step", "reload, 2 steps"),
)
TABLE = pytest.StashKey[dict[str, dict[str, float]]]()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tokenizer) -> Callable[[str], tuple[str, Path]]:
    """Function tiny(name) -> (family, folder) of a saved random pipeline; each is built once."""
    return saved(tmp_path_factory.mktemp("tiny"), tokenizer, BUILDERS)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLE] = defaultdict(dict)


@pytest.fixture
def record(request) -> Callable[[str, str, float], None]:
    """Function record(name, column, difference) that adds an entry to the table at the end of the run."""

    def write(name: str, column: str, difference: float) -> None:
        assert column in COLUMNS
        request.config.stash[TABLE][name][column] = difference

    return write


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Print each family's largest differences from stock diffusers, in standard deviations of the compared values."""
    rows = config.stash[TABLE]
    if not rows:
        return
    terminalreporter.write_line(f"{'largest difference':36}" + "".join(f"{column:>17}" for column in COLUMNS))
    for name, row in rows.items():
        cells = [f"{row[column]:.1e}" if column in row else "-" for column in COLUMNS]
        terminalreporter.write_line(f"{name:36}" + "".join(f"{cell:>17}" for cell in cells))
