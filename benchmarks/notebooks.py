"""Run notebooks from top to bottom and store their outputs.

    python -m benchmarks.notebooks [bring_your_own ...]

Runs all notebooks by default. Output to stderr (progress bars, warnings of libraries) is not stored. If a cell fails,
the command ends and the notebook file is unchanged.
"""

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"


def execute(path: Path) -> None:
    """Run the notebook at `path` and store its outputs in it."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # timestamps of the execution
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


def main() -> None:
    """Run the named notebooks."""
    known = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"notebooks to run: {', '.join(known)} (default: all)")
    names = parser.parse_args().names or known
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"NAME must be one of {', '.join(known)}, got {', '.join(unknown)}")
    for name in names:
        print(f"running {name}")
        execute(FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
