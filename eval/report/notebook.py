"""Charts, tables and samples for notebooks: what a report has, as objects that Jupyter displays.

from eval.report.notebook import curves, grid_of, scatter, table_of
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.pipelines.runs import read_run
from eval.report.charts import quality_latency, training_curves
from eval.report.columns import columns
from eval.report.grid import grid
from eval.report.markdown import escape
from eval.report.svg import as_file
from eval.report.training_log import curves as logged_curves
from eval.report.verdict import verdict_text
from teachers.support.text import cleaned

COLUMNS = ("nfe", "frechet_distance", "frechet_ratio", "prompt_agreement", "latency_ms", "speedup")


@dataclass(frozen=True)
class Display:
    """Something that Jupyter displays: an SVG chart, a Markdown text or a PNG picture."""

    svg: str | None = None
    text: str | None = None
    png: bytes | None = None

    def _repr_svg_(self) -> str | None:
        return self.svg

    def _repr_markdown_(self) -> str | None:
        return self.text

    def _repr_png_(self) -> bytes | None:
        return self.png


def curves(*folders: Path) -> list[Display]:
    """The training curves of finished runs, one chart for each quantity; the held-out distance comes first.

    Args:
        folders: The runs' folders.
    """
    runs = [read_run(folder) for folder in folders]
    report = cleaned({"curves": logged_curves(runs), "rows": [{"method": run.method} for run in runs]})
    return [Display(svg=as_file(figure)) for figure in training_curves(report)]


def scatter(report: Mapping[str, Any]) -> Display:
    """Frechet distance against latency, with intervals and the Pareto front. The list below names the points.

    Args:
        report: What `distill.compare` returns.
    """
    return Display(svg=as_file(quality_latency(cleaned(dict(report)))))


def table_of(report: Mapping[str, Any], keys: Sequence[str] = COLUMNS) -> Display:
    """A table of a few figures of every row, numbered as in `scatter`, and the verdict below it.

    Args:
        report: What `distill.compare` returns.
        keys: The entries of its rows to show.
    """
    found = cleaned(dict(report))
    shown = [column for column in columns(found) if column.key in keys]
    lines = ["| | row | " + " | ".join(escape(column.heading) for column in shown) + " |"]
    lines += ["| ---: | --- | " + " | ".join("---:" for _ in shown) + " |"]
    for number, row in enumerate(found["rows"], start=1):
        cells = []
        for column in shown:
            interval = column.interval_text(row)
            cells.append(escape(column.text(row[column.key])) + (f"<br>({escape(interval)})" if interval else ""))
        lines.append(f"| {number} | {escape(row['name'])} | " + " | ".join(cells) + " |")
    return Display(text="\n".join([*lines, "", escape(verdict_text(found))]))


def grid_of(rows: Mapping[str, Tensor], prompts: Sequence[str] | None = None) -> Display:
    """Samples as a grid: one column for each entry of `rows`, one line for each sample.

    Args:
        rows: Images (N, 3, H, W) in [0, 1] by name.
        prompts: The N prompts, or None.
    """
    named = [{"name": name, "method": "teacher"} for name in rows]
    stream = io.BytesIO()
    sheet = grid(named, [list(images) for images in rows.values()], prompts)
    sheet.resize((sheet.width // 2, sheet.height // 2)).quantize(128).save(stream, format="PNG", optimize=True)
    return Display(png=stream.getvalue())
