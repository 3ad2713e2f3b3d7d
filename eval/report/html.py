"""The report as one self-contained HTML page, light and dark. It loads nothing but samples at their own size.

This module prepares plain values; `templates/` turns them into HTML and escapes every string. Every figure is in an
element with `data-row`, `data-key` and `data-value`, the exact value of report.json. The page has one script, the
viewer of samples, and its content security policy allows no other.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from torch import Tensor

from eval.report.charts import NARROW, WIDE, quality_latency, training_curves
from eval.report.columns import columns, over_teacher, quality, speed
from eval.report.formats import contains_one, significant
from eval.report.markdown import title
from eval.report.samples import SHOWN, views
from eval.report.series import series_of, style_sheet
from eval.report.svg import as_inline
from eval.report.table import FigureText, figure, table
from eval.report.templating import render, source
from eval.report.verdict import verdict
from teachers.media import ANY_IMAGE, Medium
from teachers.support.text import cleaned

MAX_CARDS = 8  # rows with a card at the top
FILES = ("report.json", "report.csv", "report.tex", "report.md", "figures/", "model-index.yaml")  # beside the page


@dataclass(frozen=True)
class Point:
    """A numbered row of the scatter chart, with its latency and distance as text."""

    number: int
    name: str
    series: int
    latency: str
    distance: str


@dataclass(frozen=True)
class Scatter:
    """The scatter chart for desktops and for phones, as SVG, and its rows."""

    wide: Markup
    narrow: Markup
    points: list[Point]


@dataclass(frozen=True)
class Script:
    """The page's script, and its hash for the content security policy."""

    text: Markup
    digest: str

    @classmethod
    def read(cls, name: str) -> "Script":
        """A script of `templates/`."""
        text = source(name).strip() + "\n"
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return cls(Markup(text), f"sha256-{digest}")


@dataclass(frozen=True)
class Card:
    """One student's main figures. Fields that do not apply to the row are None."""

    name: str
    series: int
    latency: FigureText
    speedup: FigureText | None
    frechet_distance: FigureText
    frechet_ratio: FigureText | None
    tie: bool
    prompt_agreement: FigureText | None
    teacher: FigureText | None
    teacher_steps: int
    real_time: FigureText | None = None


def page(report: dict[str, Any], samples: Sequence[Tensor], medium: Medium = ANY_IMAGE) -> str:
    """The whole page.

    Args:
        report: The content of report.json.
        samples: For each row of the report, its first samples (K, *medium.shape) in the judged range.
        medium: Their medium.
    """
    report = cleaned(report)
    rows, gallery = report["rows"], report.get("gallery")
    students = [i for i, row in enumerate(rows) if row["method"] != "teacher"]
    pictures, played = views(samples, medium, gallery)
    return render(
        "page.html",
        report=report,
        title=title(report),
        colours=style_sheet(),
        script=Script.read("viewer.js"),
        first=rows[0],
        verdict=verdict(report),
        lead={key: figure(0, key, report) for key in ("nfe", "latency_ms", "frechet_distance")},
        cards=[_card(i, report) for i in students[:MAX_CARDS]],
        more_cards=max(0, len(students) - MAX_CARDS),
        whose="the teacher's" if over_teacher(report) else "the baseline's",
        count_mark=_count_mark(report),
        has_tie=any(contains_one(row["frechet_ratio_interval"]) for row in rows),
        samples=pictures,
        shown=SHOWN,
        prompts=report["prompts"].get("shown") or report["prompts"]["first"],
        gallery=gallery,
        medium=medium,
        played=None if played is None else f"{played:.1f}",
        series=series_of(rows),
        scatter=_scatter(report) if len(rows) > 1 else None,
        training_charts=[Markup(as_inline(chart, _described(chart))) for chart in training_curves(report)],
        quality=table(report, quality(report)),
        speed=table(report, speed(report)),
        columns=columns(report),
        protocol=_protocol(report),
        files=FILES,
    )


def _scatter(report: dict[str, Any]) -> Scatter:
    points = [
        Point(number, row["name"], series_of(report["rows"])[row["method"]], *_place(row))
        for number, row in enumerate(report["rows"], start=1)
    ]
    titles = {f"point-{p.number}": f"{p.name}: {p.latency} ms, {p.distance}" for p in points}
    label = "Frechet distance against latency; the points are numbered as in the list next to the chart"
    wide, narrow = (as_inline(quality_latency(report, size), label, titles) for size in (WIDE, NARROW))
    return Scatter(Markup(wide), Markup(narrow), points)


def _place(row: dict[str, Any]) -> tuple[str, str]:
    return significant(row["latency_ms"]), significant(row["frechet_distance"])


def _described(chart: Any) -> str:
    return f"{chart.axes[0].get_ylabel()} over training time"


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
        tie=contains_one(row["frechet_ratio_interval"]),
        prompt_agreement=None if row["prompt_agreement"] is None else figure(index, "prompt_agreement", report),
        teacher=None if few_step is None else figure(few_step, "frechet_distance", report),
        teacher_steps=row["num_steps"],
        real_time=figure(index, "times_real_time", report) if row.get("times_real_time") else None,
    )


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
        "CLAP model": report["clap"]["source"] if "clap" in report else None,
        "scores": ", ".join(f"{entry['name']}: {entry['source']}" for entry in report.get("scorers") or []) or None,
        "teacher": teacher and teacher["path"],
        "teacher call": teacher and json.dumps(teacher["call"]),
        "sample": report["medium"]["size"] if "medium" in report else None,
        "date": report["date"],
        "rows from the cache": cached or "none",
    }
    return {key: value for key, value in entries.items() if value is not None}
