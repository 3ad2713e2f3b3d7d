"""Training curves of a run, read from the logs next to its pipeline.

Each line of `history.jsonl` has a step, seconds, the held-out Frechet distance by number of steps, and a key of the
evaluation's settings; only the distances of the last settings are comparable, and shown. Each line of `log.jsonl` has a
step, seconds, and the values that the method logs. Both files are optional.
"""

import math
from pathlib import Path
from typing import Any

from eval.config.run_files import HISTORY, LOG
from eval.pipelines.runs import Run
from teachers.support.checksums import Damaged, unseal
from teachers.support.errors import reading
from teachers.support.regular import is_inside, read_bytes

LOGGED = {"fake_score/loss": "Fake score's loss", "student/tangent_norm": "Tangent's norm"}
MOST = 200  # points of a curve


def curves(runs: list[Run]) -> list[dict[str, Any]]:
    """The training curves of `runs`, each with `figure`, `run`, `method`, `seconds` and `values`."""
    found = []
    for run in runs:
        with reading(run.folder.parent):
            found += _curves(run)
    return found


def _curves(run: Run) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], list[tuple[Any, Any]]] = {}
    evaluations = _lines(run.folder.parent / HISTORY, run.key)
    for entry in evaluations:
        if entry.get("evaluation") != evaluations[-1].get("evaluation"):
            continue
        for num_steps, value in (entry.get("held_out_frechet") or {}).items():
            name = f"{run.name}, {num_steps} step" + "s" * (num_steps != "1")
            found.setdefault(("Held-out Frechet distance", name), []).append((entry.get("seconds"), value))
    for entry in _lines(run.folder.parent / LOG, run.key):
        for key, title in LOGGED.items():
            found.setdefault((title, run.name), []).append((entry.get("seconds"), entry.get(key)))
    out = []
    for (figure, name), points in found.items():
        valid = [(s, v) for s, v in points if _is_finite(s) and _is_finite(v)]
        valid = valid[:: max(1, math.ceil(len(valid) / MOST))]
        if len(valid) > 1:
            seconds, values = zip(*valid, strict=True)
            curve = {"figure": figure, "run": name, "method": run.method}
            out.append(curve | {"seconds": list(seconds), "values": list(values)})
    return out


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _lines(path: Path, run: str | None) -> list[dict[str, Any]]:
    """The records of a file, without damaged and incomplete ones and those of other runs. Empty if there is no file."""
    out = []
    try:
        lines = read_bytes(path).split(b"\n") if is_inside(path, path.parent) else []
    except OSError:
        return []
    for line in lines:
        try:
            entry = unseal(line, path, required=False)
        except Damaged:
            continue
        if run is None or entry.get("run", run) == run:
            out.append(entry)
    return out
