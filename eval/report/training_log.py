"""A run's training curves, read from what its training left beside the pipeline.

`history.jsonl` has lines of step, seconds and the held-out Frechet distance by number of steps; `log.jsonl`, where it
is there, lines of step, seconds and whatever the method logs. Nothing here knows the training's code.
"""

import json
import math
from pathlib import Path
from typing import Any

from eval.pipelines.runs import Run

HISTORY, LOG = "history.jsonl", "log.jsonl"
LOGGED = {"fake_score/loss": "Fake score's loss", "student/tangent_norm": "Tangent's norm"}
MOST = 200  # points kept of a curve


def curves(runs: list[Run]) -> list[dict[str, Any]]:
    """One entry a curve: `figure`, `run`, `method`, `seconds` and `values`; empty where the runs left none."""
    return [curve for run in runs for curve in _curves(run)]


def _curves(run: Run) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], list[tuple[Any, Any]]] = {}
    for entry in _lines(run.folder.parent / HISTORY):
        for often, value in (entry.get("held_out_frechet") or {}).items():
            name = f"{run.name}, {often} step" + "s" * (often != "1")
            found.setdefault(("Held-out Frechet distance", name), []).append((entry.get("seconds"), value))
    for entry in _lines(run.folder.parent / LOG):
        for key, title in LOGGED.items():
            found.setdefault((title, run.name), []).append((entry.get("seconds"), entry.get(key)))
    out = []
    for (figure, name), points in found.items():
        good = [(s, v) for s, v in points if _number(s) and _number(v)]
        good = good[:: max(1, math.ceil(len(good) / MOST))]
        if len(good) > 1:
            seconds, values = zip(*good, strict=True)
            curve = {"figure": figure, "run": name, "method": run.method}
            out.append(curve | {"seconds": list(seconds), "values": list(values)})
    return out


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The file's lines; none where it is missing, and without those that a kill cut short."""
    out = []
    try:
        text = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    for line in text:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict):
            out.append(entry)
    return out
