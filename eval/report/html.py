"""The report as one self-contained HTML page, light and dark. It loads nothing and runs no script.

This module prepares plain values; `templates/` turns them into HTML and escapes every string. Every figure is in an
element with `data-row`, `data-key` and `data-value`, the exact value of report.json.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eval.report.columns import columns, over_teacher, quality, speed
from eval.report.markdown import title
from eval.report.samples import shown, views
from eval.report.scatter import scatter, series_of
from eval.report.table import Figure, figure, table
from eval.report.templating import render
from eval.report.training_charts import training_charts
from teachers.media import ANY_IMAGE, Medium
from teachers.support.text import cleaned

MAX_CARDS = 8  # rows with a card at the top
NARROW = (360, 400)  # size of the scatter chart on a phone


@dataclass(frozen=True)
class Card:
    """One student's main figures. Fields that do not apply to the row are None."""

    name: str
    series: int
    latency: Figure
    speedup: Figure | None
    frechet_distance: Figure
    frechet_ratio: Figure | None
    tie: bool
    prompt_agreement: Figure | None
    teacher: Figure | None
    teacher_steps: int
    real_time: Figure | None = None


def page(report: dict[str, Any], samples: Sequence[Tensor], medium: Medium = ANY_IMAGE) -> str:
    """The whole page.

    Args:
        report: The content of report.json.
        samples: For each row of the report, its first samples (K, *medium.shape) in the judged range.
        medium: Their medium.
    """
    report, kept = cleaned(report), shown(samples, medium)
    rows = report["rows"]
    students = [i for i, row in enumerate(rows) if row["method"] != "teacher"]
    series = series_of(rows)
    methods = {row["method"] for row in rows}
    return render(
        "page.html",
        report=report,
        title=title(report),
        first=rows[0],
        lead={key: figure(0, key, report) for key in ("nfe", "latency_ms", "frechet_distance")},
        cards=[_card(i, report) for i in students[:MAX_CARDS]],
        more_cards=max(0, len(students) - MAX_CARDS),
        whose="the teacher's" if over_teacher(report) else "the baseline's",
        count_mark=_count_mark(report),
        has_tie=any(_is_tie(row) for row in rows),
        samples=[views(row, kept) for row in kept.samples],
        medium=medium,
        played=None if kept.played is None else f"{kept.played:.1f}",
        series=series,
        legend={method: colour for method, colour in series.items() if method in methods},
        scatters={"wide": scatter(rows), "narrow": scatter(rows, *NARROW)} if len(rows) > 1 else None,
        training_charts=training_charts(report["curves"], series),
        quality=table(report, quality(report)),
        speed=table(report, speed(report)),
        columns=columns(report),
        protocol=_protocol(report),
    )


def _card(index: int, report: dict[str, Any]) -> Card:
    row = report["rows"][index]
    is_baseline = row["name"] == report["baseline"]
    few_step = next(
        (
            i
            for i, other in enumerate(report["rows"])
            if i > 0 and other["method"] == "teacher" and other["num_steps"] == row["num_steps"]
        ),
        None,
    )
    has_ratio = row["frechet_ratio"] is not None and not is_baseline
    return Card(
        name=row["name"],
        series=series_of(report["rows"])[row["method"]],
        latency=figure(index, "latency_ms", report),
        speedup=None if is_baseline else figure(index, "speedup", report),
        frechet_distance=figure(index, "frechet_distance", report),
        frechet_ratio=figure(index, "frechet_ratio", report) if has_ratio else None,
        tie=_is_tie(row),
        prompt_agreement=None if row["prompt_agreement"] is None else figure(index, "prompt_agreement", report),
        teacher=None if few_step is None else figure(few_step, "frechet_distance", report),
        teacher_steps=row["num_steps"],
        real_time=figure(index, "times_real_time", report) if row.get("times_real_time") else None,
    )


def _is_tie(row: dict[str, Any]) -> bool:
    interval = row["frechet_ratio_interval"]
    return interval is not None and interval[0] <= 1 <= interval[1]


def _count_mark(report: dict[str, Any]) -> str:
    """The part of the Frechet distance's name that gives the number of samples, such as "@10k"."""
    found = re.search(r"@\w+", report["frechet_column"])
    return found.group() if found else ""


def _protocol(report: dict[str, Any]) -> dict[str, Any]:
    """Names and values of the settings; settings that this comparison does not have are left out."""
    teacher, size, clip = report["teacher"], report.get("size"), report.get("clip")
    cached = ", ".join(row["name"] for row in report["rows"] if row["from_cache"])
    entries = {
        "samples": report["samples"],
        "batch size": report["batch_size"],
        "seed": report["seed"],
        "features": report["features"],
        "reference": report["reference"] or "the teacher's own samples, other seeds",
        "prompts": report["prompts"]["source"] or "none",
        "protocol": report.get("protocol"),
        "evaluated at": size and f"{size} x {size} pixels (center crop, Lanczos)",
        "CLIP model": clip and clip["source"],
        "teacher": teacher and teacher["path"],
        "teacher call": teacher and json.dumps(teacher["call"]),
        "sample": report["medium"]["size"] if "medium" in report else None,
        "date": report["date"],
        "rows from the cache": cached or "none",
    }
    return {key: value for key, value in entries.items() if value is not None}
