"""Training runs of the pocket recipes, each in its own process, and their records."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from distill.training.jsonl_log import held_out_records
from teachers.loading.record import read_record


def train(recipe: str, folder: Path, *overrides: str) -> None:
    """Train the shipped recipe pocket/`recipe` in `folder`, resume it, or return at once if it is finished."""
    command = [sys.executable, "-m", "distill", "train", f"pocket/{recipe}"]
    subprocess.run([*command, f"name={folder.name}", f"output={folder.parent}", *overrides], check=True)


def evaluate(folders: list[Path], out: Path, samples: int) -> dict[str, Any]:
    """The report of `fewstep eval` on finished runs, which is written to `out`.

    Args:
        folders: The runs' folders.
        out: The report's folder.
        samples: Samples per row.
    """
    command = [sys.executable, "-m", "eval", *map(str, folders), "--out", str(out), "--samples", str(samples)]
    subprocess.run(command, check=True)
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def history(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's held-out evaluations, in order of steps."""
    return held_out_records(folder / "history.jsonl", exported(folder)["run"])


def exported(folder: Path) -> dict[str, Any]:
    """The record of the distillation, which is stored with the exported pipeline."""
    return read_record(folder / "pipeline")
