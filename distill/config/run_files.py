"""The names of a run's folder and of what a run writes into it."""

from distill.config.typed import InvalidOption
from eval.config.run_files import HISTORY, LOG, RECIPE
from teachers.support.text import folder_name_problem, printable

CHECKPOINTS, PIPELINE, SAMPLES, VALIDATION, CACHE = "checkpoints", "pipeline", "samples", "validation", "cache"
EXPORTED, FAILED, STATUS = "exported.json", "failed.json", "status.json"

FOLDERS = (CHECKPOINTS, PIPELINE)  # without which no run can end
FILES = (RECIPE, HISTORY, LOG, EXPORTED, FAILED, STATUS)
# What a run writes into its folder, apart from a folder with the run's name, which trackers write.
OWN = (*FOLDERS, SAMPLES, VALIDATION, CACHE, *FILES)
TEMPORARY = (  # what an interrupted run leaves
    *(f".{PIPELINE}*.tmp", ".*.json*.tmp", f".{RECIPE}*.tmp"),
    *(f"{CHECKPOINTS}/.*.tmp", f"{CHECKPOINTS}/best/.*.tmp", f"{CACHE}/**/.*.tmp"),
)
# Names that no run can have: its trackers write to a folder of the run's name in its folder, and the quickstart
# writes its report beside the runs.
RESERVED = (*OWN, "report")


def check_run_names(name: str, output: str) -> None:
    """Check a recipe's `name` and `output`.

    Raises:
        InvalidOption: If a folder cannot have this name on every system, or it is one of RESERVED, or `output` has
            control characters.
    """
    if problem := folder_name_problem(name, RESERVED):
        raise InvalidOption("name", f"must be a plain folder name without slashes, got {name!r}: {problem}")
    if printable(output, lines=True) != output or "\n" in output:
        raise InvalidOption("output", f"must be a folder without control characters in its name, got {output!r}")
