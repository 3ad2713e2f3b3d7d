"""Writes a report: report.html, report.md, report.json, report.csv, model-index.yaml and grid.png."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.report.csv_table import csv_table
from eval.report.grid import grid
from eval.report.html import page
from eval.report.markdown import markdown, plain
from eval.report.model_index import model_index
from eval.report.samples import shown
from teachers.media import ANY_IMAGE, Medium
from teachers.support.checksums import seal
from teachers.support.files import atomic_write
from teachers.support.text import cleaned, json_text


def write_report(report: dict[str, Any], samples: Sequence[Tensor], out: Path, medium: Medium = ANY_IMAGE) -> None:
    """Write all files of a report.

    - report.html: a page with tables, charts and samples that loads no other file
    - report.md: tables, notes and the command, as GitHub Markdown
    - report.json: `report` itself, with a checksum
    - report.csv: one line per row with every figure unrounded; the interval of KEY is in KEY_low and KEY_high
    - model-index.yaml: the figures for model cards on the Hugging Face Hub
    - grid.png: the first samples of every row

    Control characters and marks of direction in names and prompts are escaped (`teachers.support.text.printable`).
    All contents are prepared before the first file is written, and each file is written under a temporary name and then
    renamed.

    Args:
        report: The contents of report.json, as `eval.compare.compare` returns them.
        samples: For each row, its first samples (K, *medium.shape) in the judged range.
        out: The folder.
        medium: What the rows sample.

    Raises:
        ValueError: A figure is NaN or infinite.
        OSError: A file cannot be written.
    """
    exact, report = report, cleaned(report)
    stream = io.BytesIO()
    sheet = grid(report["rows"], shown(samples, medium).stills(), report["prompts"]["first"])
    sheet.save(stream, format="PNG", optimize=True)
    files = {
        "grid.png": stream.getvalue(),
        "report.json": (json_text(seal(exact), indent=2) + "\n").encode(),
        "report.md": markdown(report).encode(),
        "report.html": page(report, samples, medium).encode(),
        "report.csv": csv_table(report).encode(),
        "model-index.yaml": model_index(report).encode(),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic_write(out / name) as temporary:
            temporary.write_bytes(content)


__all__ = ["plain", "write_report"]
