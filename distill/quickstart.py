"""Distil an embedded teacher with two methods and compare the students, in about six minutes on two CPU cores.

    fewstep quickstart [--medium image|video|audio]

Trains the recipes pocket/dmd and pocket/scm, or those of the other medium, and compares both students with their
teacher. Run it again to continue after an interruption; finished parts are reused.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from distill.config.recipe import load
from distill.train import train
from eval.config.names import METHOD_TITLES
from eval.config.options import check_options
from teachers.loading.embedded import EMBEDDED

RECIPES = {
    "image": ("pocket/dmd", "pocket/scm"),
    "video": ("pocket/video_dmd", "pocket/video_scm"),
    "audio": ("pocket/audio_dmd", "pocket/audio_scm"),
}
SAMPLES = {"image": 1000, "video": 500, "audio": 500}  # of each row of the report, by default


def quickstart(output: Path | None, samples: int | None, overrides: list[str], medium: str = "image") -> None:
    """Train both students and write a report.

    Args:
        output: The folder of both runs; the report is written to its subfolder `report`. None: runs/quickstart, or
            runs/quickstart-video and runs/quickstart-audio for the other media.
        samples: Number of samples for each row of the report; None: `SAMPLES`.
        overrides: `key=value` overrides for both recipes.
        medium: A key of `RECIPES`.

    Raises:
        ValueError: If the teacher of the medium is missing, a recipe is wrong or the comparison fails.
    """
    samples = SAMPLES[medium] if samples is None else samples
    check_options(samples=samples)
    teacher = next(each for each in EMBEDDED.values() if each.medium == medium)
    teacher.pipeline()
    if output is None:
        output = Path("runs/quickstart" if medium == "image" else f"runs/quickstart-{medium}")
    start = time.perf_counter()
    runs = []
    for number, name in enumerate(RECIPES[medium], start=1):
        recipe = load(name, [f"output={output}", *overrides])
        method = METHOD_TITLES[recipe.method["name"]]
        print(
            f"\n[{number}/3] distilling {teacher.title} with {method}: {recipe.train.steps} steps into {recipe.folder}"
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
