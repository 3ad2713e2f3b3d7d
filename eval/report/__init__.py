"""Writing a comparison down: report.html (one file, nothing fetched), report.md, report.json, model-index.yaml and
grid.png."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.report.grid import grid
from eval.report.html import page
from eval.report.markdown import markdown, plain
from eval.report.model_index import model_index
from teachers.support.files import atomic_write


def write_report(report: dict[str, Any], images: Sequence[Tensor], out: Path) -> None:
    """Write `report` (what report.json holds) and its pictures, `images[i]` (K, 3, H, W) for row i, into `out`.

    Everything is made before anything is written, and each file appears whole.
    """
    stream = io.BytesIO()
    picture = grid(report["rows"], images, report["prompts"]["first"])
    picture.save(stream, format="PNG", optimize=True)
    files = {
        "grid.png": stream.getvalue(),
        # Infinity and NaN are no JSON; they would be our own mistake.
        "report.json": (json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(),
        "report.md": markdown(report).encode(),
        "report.html": page(report, images).encode(),
        "model-index.yaml": model_index(report).encode(),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic_write(out / name) as temporary:
            temporary.write_bytes(content)


__all__ = ["plain", "write_report"]
