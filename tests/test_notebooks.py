"""Every notebook runs from top to bottom with few steps and samples."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted(Path("notebooks").glob("*.ipynb"))
FEW_TIMINGS = """\
import functools
import distill
from eval.config.options import Timing
timing = Timing(repeats=2, seconds=0.1, min_repeats=1, part_repeats=1)
distill.compare = functools.partial(distill.compare, few_steps=(1,), timing=timing)
del functools, distill, Timing, timing
"""


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_STEPS", "4")
    monkeypatch.setenv("FEWSTEP_SAMPLES", "12")
    monkeypatch.setenv("FEWSTEP_RUNS", str(tmp_path / "runs"))
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FEW_TIMINGS))
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert (tmp_path / "runs" / "report" / "report.html").is_file()


def test_notebooks_have_stored_outputs():
    for path in NOTEBOOKS:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert any(cell.outputs for cell in cells), (
            f"{path} has no outputs: run python -m benchmarks.notebooks {path.stem}"
        )
