"""The table of front ends: what stock diffusers and other tools do with exported students.

    python -m benchmarks.front_ends [--write benchmarks/results/front_ends.md]

The students are untrained and have random weights with real architectures, because only exactness is measured. Each
number is the largest difference of the clean latents of any network call from the project's own sampler, in standard
deviations, or of images, whichever is larger. A text is the error with which the front end refuses.
"""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

from benchmarks.wild.cells import CELLS, Case
from benchmarks.wild.files import FILES
from benchmarks.wild.teachers import METHODS, export_case

FAMILIES = ("Stable Diffusion 1.5", "Stable Diffusion 2.1 (v, zero SNR)", "Stable Diffusion XL")
OTHERS = ("PixArt-Sigma 512", "Stable Diffusion 3.5", "Flux.1 dev")


def fill(case: Case, cell: str) -> str:
    """The text of a cell: a difference, or "refused: " and the first sentence of the error."""
    function = (CELLS | FILES)[cell]
    try:
        return f"{function(case):.0e}"
    except Exception as error:  # front ends raise many types
        return f"refused: {' '.join(str(error).split())[:110]}"


def rows(teachers: Path, work: Path) -> list[list[str]]:
    """The table: a row for each front end and family, a column for each method."""
    cases: dict[tuple[str, str], Case] = {}
    for family in (*FAMILIES, *OTHERS):
        for method in METHODS:
            name = f"{family} {method}".replace(" ", "_").replace(",", "")
            cases[family, method] = export_case(family, method, teachers, work / name)
    found = []
    for family in (*FAMILIES, *OTHERS):
        for cell in [*(CELLS if family in FAMILIES else {}), *FILES]:
            found.append([cell, family, *(fill(cases[family, method], cell) for method in METHODS)])
            print(" | ".join(found[-1]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="the Markdown file to write")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        table = rows(Path(folder) / "teachers", Path(folder) / "work")
    head = ["front end", "family", *METHODS]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *table)]
    text = "# Students in other tools\n\n" + (__doc__ or "").split("\n\n", 2)[2] + "\n" + "\n".join(lines) + "\n"
    if options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
