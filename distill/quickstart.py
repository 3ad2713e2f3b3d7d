"""The main job on the embedded default: one teacher, two students, one report. About ten minutes on two CPU cores.

    python -m distill.quickstart

Trains recipes/pocket/dmd.yaml and recipes/pocket/scm.yaml and compares both with their teacher. Run it again after an
interruption and it goes on; run it again after it ended and it reuses what is there.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from distill.config.recipe import load
from distill.train import train


def quickstart(output: Path, samples: int, overrides: list[str]) -> None:
    """Train both students into `output`, write `output/report`, print the table."""
    begun = time.perf_counter()
    runs = []
    for number, name in enumerate(("dmd", "scm"), start=1):
        recipe = load(f"pocket/{name}", [f"output={output}", *overrides])
        print(
            f"\n[{number}/3] distilling the pocket teacher with {name.upper()}: "
            f"{recipe.train.steps} steps into {recipe.folder}"
        )
        train(recipe)
        runs.append(recipe.folder)
    print(f"\n[3/3] comparing both students with the teacher, {samples:,} samples a row")
    # A process of its own, so that what training left in memory is not counted as the pipelines' peak.
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
        raise ValueError("the comparison failed, see above; run the same command again to go on from there")
    print(f"\nThe report:     {output / 'report' / 'report.html'}")
    for run in runs:
        print(f"The pipeline:   {run / 'pipeline'}")
    print(f"This took {(time.perf_counter() - begun) / 60:.1f} minutes.")


if __name__ == "__main__":
    from distill.cli import main

    main("quickstart")
