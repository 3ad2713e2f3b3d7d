"""Print how far a run is, and how long it still takes.

fewstep status RUN
"""

import sys
from pathlib import Path

from distill.training.status import status_line


def print_status(runs: tuple[Path, ...]) -> None:
    """Print one line for each run; see `distill.training.status`.

    Args:
        runs: Folders of runs. As long as one has a valid status, the others are only named: `runs/*` also matches the
            folder of a report.

    Raises:
        ValueError: If none has a valid status.
    """
    problems: list[ValueError] = []
    for run in runs:
        try:
            print(status_line(run))
        except ValueError as error:
            problems.append(error)
    if len(problems) == len(runs):
        raise problems[0]
    for problem in problems:
        print(problem, file=sys.stderr)


if __name__ == "__main__":
    from distill.cli import main

    main("status")
