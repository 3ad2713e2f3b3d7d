"""Writes a report: report.html, report.md, report.json, tables, figures and the samples at their own size."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.report.charts import quality_latency, training_curves
from eval.report.csv_table import csv_table
from eval.report.gallery import gallery, write_gallery
from eval.report.grid import grid
from eval.report.html import page
from eval.report.latex_table import latex_table
from eval.report.markdown import markdown, plain
from eval.report.model_index import model_index
from eval.report.samples import shown
from eval.report.svg import as_file
from teachers.media import ANY_IMAGE, Medium
from teachers.support.checksums import seal
from teachers.support.files import atomic_write
from teachers.support.text import cleaned, json_text

__all__ = ["plain", "write_report"]

FIGURES = "figures"  # the folder of charts


def write_report(
    report: dict[str, Any], samples: Sequence[Tensor], out: Path, medium: Medium = ANY_IMAGE
) -> dict[str, Any]:
    """Write all files of a report.

    - report.html: a page with tables, charts and samples, complete in itself
    - report.md: tables, notes and the command, as GitHub Markdown
    - report.json: `report` itself with the entry "gallery" (`eval.report.gallery`), and a checksum
    - report.csv: one line per row with every figure unrounded; the interval of KEY is in KEY_low and KEY_high
    - report.tex: the main figures as a LaTeX table
    - model-index.yaml: the figures for model cards on the Hugging Face Hub
    - grid.png: the first samples of every row
    - figures/: the charts as SVG files
    - images/ (clips/, sounds/): the samples of every row at their own size, with their seeds

    Control characters and marks of direction in names and prompts are escaped (`teachers.support.text.printable`).
    All contents but the samples are prepared before the first file is written, and each file and folder is written
    under a temporary name and then renamed.

    Args:
        report: The contents of report.json, as `eval.compare.compare` returns them.
        samples: For each row, its first samples (K, *medium.shape) in the judged range.
        out: The folder.
        medium: What the rows sample.

    Returns:
        The contents of report.json, with the entry "gallery".

    Raises:
        ValueError: If a figure is NaN or infinite.
        OSError: If a file cannot be written.
    """
    exact = report | {"gallery": gallery(report, samples, medium)}
    report = cleaned(exact)
    stream = io.BytesIO()
    sheet = grid(report["rows"], shown(samples, medium).stills(), report["prompts"]["first"])
    sheet.save(stream, format="PNG", optimize=True)
    files = {
        "grid.png": stream.getvalue(),
        "report.json": (json_text(seal(exact), indent=2) + "\n").encode(),
        "report.md": markdown(report).encode(),
        "report.html": page(report, samples, medium).encode(),
        "report.csv": csv_table(report).encode(),
        "report.tex": latex_table(report).encode(),
        "model-index.yaml": model_index(report).encode(),
    }
    figures = _figures(report)
    out.mkdir(parents=True, exist_ok=True)
    write_gallery(exact["gallery"], samples, out, medium)
    with atomic_write(out / FIGURES) as temporary:
        temporary.mkdir()
        for name, text in figures.items():
            (temporary / name).write_text(text, encoding="utf-8")
    for name, content in files.items():
        with atomic_write(out / name) as temporary:
            temporary.write_bytes(content)
    return exact


def _figures(report: dict[str, Any]) -> dict[str, str]:
    """The charts as SVG files."""
    charts = {"quality-latency.svg": quality_latency(report)} if len(report["rows"]) > 1 else {}
    charts |= {f"training-{i}.svg": chart for i, chart in enumerate(training_curves(report), start=1)}
    return {name: as_file(chart) for name, chart in charts.items()}
