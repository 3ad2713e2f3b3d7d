"""Keeps exported pipelines unchanged while a command reads them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from teachers.support.locks import hold


@contextmanager
def hold_pipelines(runs: Sequence[Path]) -> Iterator[None]:
    """Inside the block, an export of another process waits before it replaces a pipeline of `runs`.

    Args:
        runs: Folders of runs, folders of pipelines, or Hub ids.
    """
    with ExitStack() as stack:
        for folder in {run / "pipeline" if (run / "pipeline").is_dir() else run for run in map(Path, runs)}:
            if folder.is_dir():
                stack.enter_context(hold(folder))
        yield
