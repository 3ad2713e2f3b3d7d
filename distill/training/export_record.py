"""The record of a run's export, `exported.json`: the state that the pipeline in the run's folder was exported from.

It has the SHA-256 of the pipeline's `distill.json`, which has those of all other files.
"""

from pathlib import Path
from typing import Any

from distill.config.recipe import Recipe
from distill.config.run_files import EXPORTED, PIPELINE
from teachers.loading.embedded import EMBEDDED
from teachers.loading.record import RECORD
from teachers.support.checksums import read_sealed_json, write_sealed_json
from teachers.support.keys import content, file_content, folder_contents, key


def record_export(recipe: Recipe, run: str, step: int, failed: bool = False) -> None:
    """Record which state the pipeline in a run's folder was exported from.

    Args:
        recipe: The run's recipe.
        run: The run's key, from `run_key`.
        step: The training step of the run.
        failed: Whether training went wrong, so the pipeline is that of the best EMA only.
    """
    record = {
        "fingerprint": run,
        "step": step,
        "failed": failed,
        "options": export_key(recipe),
        "record": file_content(recipe.folder / PIPELINE / RECORD),
    }
    write_sealed_json(recipe.folder / EXPORTED, record)


def export_key(recipe: Recipe) -> str:
    """A key of what an export depends on apart from the run's fingerprint."""
    evaluation, second = recipe.evaluation, recipe.method.get("second_times")
    # The export has a copy of the prompts, but only the name of the reference.
    prompts = evaluation.prompts
    if prompts is not None and prompts not in EMBEDDED:
        prompts = content(prompts)
    parts = evaluation.features, prompts, evaluation.reference
    return key(recipe.train.export, *parts, recipe.export, second)


def export_record(folder: Path, run: str | None = None) -> dict[str, Any] | None:
    """What `record_export` wrote in a run's folder; None if there is no valid record, or one of another run."""
    try:
        stored = read_sealed_json(folder / EXPORTED)
        texts = {name: str(stored[name]) for name in ("fingerprint", "options", "record")}
        found = texts | {"step": int(stored["step"]), "failed": bool(stored["failed"])}
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return found if run in (None, found["fingerprint"]) else None


def changed_since_export(folder: Path, record: dict[str, Any]) -> list[str]:
    """The files of a run's pipeline that are not as they were exported: missing, altered, or added to a component.

    Args:
        folder: The run's folder.
        record: The export's record, from `export_record`.
    """
    pipeline = folder / PIPELINE
    if not (pipeline / RECORD).is_file() or file_content(pipeline / RECORD) != record["record"]:
        return [RECORD]
    before, present = read_sealed_json(pipeline / RECORD)["files"], folder_contents(pipeline)
    added = [name for name in present if name not in before and "/" in name]  # no loader reads a file beside the index
    return [name for name in before if present.get(name) != before[name]] + added


def is_exported(folder: Path, run: str, step: int) -> bool:
    """Whether the pipeline in a run's folder is as it was exported by the run `run`, at `step` or later."""
    record = export_record(folder, run)
    return record is not None and record["step"] >= step and not changed_since_export(folder, record)
