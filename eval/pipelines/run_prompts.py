"""Prompts of a comparison, and those that its runs were trained with."""

from pathlib import Path

from eval.pipelines.runs import Run
from eval.pipelines.shared_settings import shared_setting
from teachers.loading.embedded import EMBEDDED
from teachers.loading.prompts import read_prompts
from teachers.loading.sources import read_source_rows
from teachers.support.regular import is_inside

TRAINING_PROMPTS = "training_prompts.txt"  # in a pipeline's folder


def own_prompts(runs: list[Run]) -> str | None:
    """The source of prompts that all runs with a teacher agree on, by name or by content.

    A distill.json may come from a stranger, and prompts are shown in reports, so no file outside of its folder is read.

    Raises:
        ValueError: If the runs name different prompts, or a file outside of their folders.
    """
    files = {run.prompts: run.folder for run in runs if run.prompts is not None and run.prompts not in EMBEDDED}
    for source, folder in files.items():
        if not is_inside(Path(str(source)), folder):
            raise ValueError(
                f"the distill.json in {folder} names the prompts {source!r}, which are not in its folder; "
                "give --prompts to choose prompts"
            )
    first, *others = [run.prompts for run in runs if run.teacher is not None] or [None]
    if first in files and all(other in files and _content(other) == _content(first) for other in others):
        return first
    shared: str | None = shared_setting(runs, "prompts")
    return shared


def _content(source: str) -> list[str]:
    """What a stored source of prompts holds: prompts, or keys of source images with instructions."""
    if Path(source).is_dir():
        return [row.content() for row in read_source_rows(Path(source), masked=False)]
    return read_prompts(source)


def training_prompts(run: Run) -> set[str] | None:
    """The training prompts of a run, or None if they are not stored with its pipeline.

    Those of a run that names an embedded teacher's prompts are these prompts, unless it records that it was trained
    with a part of them only.
    """
    if run.prompts in EMBEDDED:
        known = set(read_prompts(str(run.prompts)))
        return known if run.shared_prompts in (None, len(known)) else None
    file = run.folder / TRAINING_PROMPTS
    return set(read_prompts(str(file))) if is_inside(file, run.folder) and file.is_file() else None


def prompts_for(source: str | None, count: int) -> tuple[list[str] | None, int]:
    """`count` prompts, repeated from the first if the source has fewer.

    Args:
        source: A source of prompts (`teachers.loading.prompts`), or None.
        count: The number of samples.

    Returns:
        The prompts, and how many the source has; None and 0 without a source.
    """
    if source is None:
        return None, 0
    prompts = read_prompts(source)
    return [prompts[i % len(prompts)] for i in range(count)], len(prompts)
