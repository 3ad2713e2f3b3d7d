"""Print how far a run is, and how long it still takes.

fewstep status RUN
"""

from pathlib import Path

from distill.training.status import status_line


def print_status(runs: tuple[Path, ...]) -> None:
    """Print one line for each run; see `distill.training.status`."""
    for run in runs:
        print(status_line(run))


if __name__ == "__main__":
    from distill.cli import main

    main("status")
