"""Run notebooks from top to bottom and keep what they show.

    python -m benchmarks.notebooks [bring_your_own ...]

All of them by default. What goes to stderr (progress bars, libraries' warnings) is left out; a cell that fails ends the
command and leaves its notebook as it was.
"""

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the moments at which it ran
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


def main() -> None:
    known = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)} (default: all)")
    names = parser.parse_args().names or known
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"there is no notebook {', '.join(unknown)}; there are {', '.join(known)}")
    for name in names:
        print(f"running {name}")
        execute(FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
