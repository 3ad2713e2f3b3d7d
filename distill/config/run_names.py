"""The names that a run's folder can have."""

from distill.config.typed import InvalidOption
from teachers.support.text import folder_name_problem, printable

# This project's own names in the folder of runs and in a run's folder, where trackers write to the run's name.
RESERVED = (
    *("report", "cache", "checkpoints", "samples", "pipeline"),
    *("recipe.yaml", "history.jsonl", "log.jsonl", "exported.json", "failed.json"),
)


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
