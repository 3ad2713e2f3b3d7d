"""Distil the embedded teacher with two methods and compare the students, in about ten minutes on two CPU cores.

    fewstep quickstart

Trains the recipes pocket/dmd and pocket/scm and compares both students with their teacher. Run it again to continue
after an interruption; finished parts are reused.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from distill.config.recipe import load
from distill.train import train
from eval.config.options import check_options


def quickstart(output: Path, samples: int, overrides: list[str]) -> None:
    """Train both students and write a report.

    Args:
        output: The folder of both runs; the report is written to its subfolder `report`.
        samples: Number of samples for each row of the report.
        overrides: `key=value` overrides for both recipes.

    Raises:
        ValueError: If a recipe is wrong or the comparison fails.
    """
    check_options(samples=samples)
    start = time.perf_counter()
    runs = []
    for number, name in enumerate(("dmd", "scm"), start=1):
        recipe = load(f"pocket/{name}", [f"output={output}", *overrides])
        print(
            f"\n[{number}/3] distilling the pocket teacher with {name.upper()}: "
            f"{recipe.train.steps} steps into {recipe.folder}"
        )
        train(recipe)
        runs.append(recipe.folder)
    print(f"\n[3/3] comparing both students with the teacher, {samples:,} samples for each row")
    # In another process, so that the memory of the training is not part of the pipelines' peak.
    command = [
        sys.executable,
        "-m",
        "eval",
        *map(str, runs),
        "--out",
        str(output / "report"),
        "--samples",
        str(samples),
    ]
    if subprocess.run(command, check=False, env=os.environ | {"PYTHONSAFEPATH": "1"}).returncode:
        raise ValueError("the comparison failed, see above; run the same command again to continue")
    print(f"\nThe report:     {output / 'report' / 'report.html'}")
    for run in runs:
        print(f"The pipeline:   {run / 'pipeline'}")
    print(f"This took {(time.perf_counter() - start) / 60:.1f} minutes.")


if __name__ == "__main__":
    from distill.cli import main

    main("quickstart")
