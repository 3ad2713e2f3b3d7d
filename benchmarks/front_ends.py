"""The table of front ends: what stock diffusers and other tools do with exported students.

    python -m benchmarks.front_ends [--families "Stable Diffusion 1.5"] [--write benchmarks/results/front_ends.md]

The students are untrained and have random weights with real architectures, because only exactness is measured. Each
number is the largest difference of the clean latents of any network call from the project's own sampler, in standard
deviations, or of images, whichever is larger. A text is the error with which the front end refuses.
"""

import argparse
import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from benchmarks.wild.cells import CELLS, Case
from benchmarks.wild.files import FILES
from benchmarks.wild.steps import NoStep
from benchmarks.wild.teachers import METHODS, POCKET, export_case

UNETS = (POCKET, "Stable Diffusion 1.5", "Stable Diffusion 2.1 (v, zero SNR)", "Stable Diffusion XL")
FAMILIES = (*UNETS, "PixArt-Sigma 512", "Stable Diffusion 3.5", "Flux.1 dev")


def fill(case: Case, cell: str) -> str:
    """The text of a cell: a difference, or "refused: " and the first sentence of the error."""
    function = (CELLS | FILES)[cell]
    try:
        return f"{function(case):.0e}"
    except NoStep as error:  # the front end refuses nothing
        return f"wrong: {error}"
    except Exception as error:  # front ends raise many types
        return f"refused: {' '.join(str(error).replace('|', '/').split())[:110]}"


def rows(families: Sequence[str], folder: Path) -> list[list[str]]:
    """The table: a row for each front end and family, a column for each method."""
    found = []
    for family in families:
        cases: dict[str, Case] = {}
        for method in METHODS:
            name = f"{family} {method}".replace(" ", "_").replace(",", "")
            cases[method] = export_case(family, method, folder / "teachers", folder / name)
        for cell in [*(CELLS if family in UNETS else {}), *FILES]:
            found.append([cell, family, *(fill(case, cell) for case in cases.values())])
            print(" | ".join(found[-1]), flush=True)
    return found


def kept(file: Path, families: Sequence[str]) -> list[list[str]]:
    """The rows of a table that was written before, of other families."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return [row for row in table[2:] if len(row) == len(METHODS) + 2 and row[1] not in families]


def main() -> None:
    """Fill the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), help="families whose rows are measured")
    parser.add_argument("--write", type=Path, help="the Markdown file to write; its rows of other families are kept")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        table = rows(options.families, Path(folder))
    if not options.write:
        return
    table += kept(options.write, options.families)
    table.sort(key=lambda row: FAMILIES.index(row[1]))
    head = ["front end", "family", *METHODS]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *table)]
    about = (__doc__ or "").split("\n\n", 2)[2]
    text = f"# Students in other tools\n\n`python -m benchmarks.front_ends`. {about}\n" + "\n".join(lines) + "\n"
    options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
