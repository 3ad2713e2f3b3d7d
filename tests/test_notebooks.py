"""Every notebook runs from top to bottom with few steps and samples."""

import ast
import configparser
import os
from pathlib import Path

import nbformat
import pytest

from tests.forks import Fork

NOTEBOOKS = sorted(Path("notebooks").glob("*.ipynb"), key=lambda path: path.stem != "quickstart")
FEW_TIMINGS = """\
import functools
import distill
from eval.config.options import Timing
timing = Timing(repeats=2, seconds=0.1, min_repeats=1, part_repeats=1)
distill.compare = functools.partial(distill.compare, few_steps=(1,), timing=timing)
del functools, distill, Timing, timing
"""


def run_cells(path: Path) -> None:
    """Run the code of a notebook in IPython, in the notebook's folder and without a kernel of its own."""
    from IPython.core.interactiveshell import InteractiveShell

    os.chdir(path.parent)
    shell = InteractiveShell.instance()
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for source in (FEW_TIMINGS, *cells):
        shell.run_cell(source).raise_error()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.first_by_default
def test_notebook_runs(path, tmp_path):
    few = {"FEWSTEP_STEPS": "4", "FEWSTEP_SAMPLES": "12", "FEWSTEP_RUNS": str(tmp_path / "runs")}
    notebook = Fork(tmp_path / "notebook", run_cells, path.resolve(), variables=few)
    assert notebook.wait(400) == 0, notebook.error + notebook.out
    assert (tmp_path / "runs" / "report" / "report.html").is_file()


def test_stored_lists_of_families_are_those_that_are_installed():
    notebook = nbformat.read("notebooks/bring_your_own.ipynb", as_version=4)
    printed = [
        "".join(output.text) for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output
    ]
    setup = configparser.ConfigParser()
    setup.read("setup.cfg")
    declared = setup["options.entry_points"]["distill.teachers"].strip().splitlines()
    names = sorted(line.partition("=")[0].strip() for line in declared)
    listing = next(text for text in printed if text.startswith(names[0]))
    assert [line.split()[0] for line in listing.splitlines() if line] == names
    (listed,) = (ast.literal_eval(text) for text in printed if text.startswith(f"['{names[0]}'"))
    assert listed == sorted([*names, "negative"])  # the notebook's own


def test_notebooks_have_stored_outputs():
    for path in NOTEBOOKS:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert any(cell.outputs for cell in cells), (
            f"{path} has no outputs: run python -m benchmarks.notebooks {path.stem}"
        )
