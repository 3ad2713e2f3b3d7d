"""Evaluation protocols: YAML files with the options that a published evaluation fixes.

    python -m eval RUN --protocol recipes/eval/coco30k.yaml

The keys of a protocol are names of options. Options on the command line override it. Files named in a protocol are
looked up relative to the current folder, then relative to the protocol's folder.
"""

from pathlib import Path
from typing import Any

from eval.config.options import Options
from teachers.support.errors import reads, suggest
from teachers.support.options import check_value
from teachers.support.yaml_files import read_yaml

FILES = ("prompts", "reference", "clip", "clap")
KEYS = (*FILES, "samples", "size", "seed", "batch_size", "features", "score", "allow_pickle")


@reads
def read_protocol(path: Path) -> dict[str, Any]:
    """Read the options of a protocol.

    Args:
        path: The YAML file.

    Returns:
        Values by option name.

    Raises:
        ValueError: If the file is missing, is not YAML, or has an unknown option or a value that cannot be used.
    """
    if not path.exists():
        raise ValueError(f"--protocol must be a YAML file such as recipes/eval/coco30k.yaml, there is no {path}")
    stored = read_yaml(path)
    if not isinstance(stored, dict) or not stored:
        raise ValueError(f"{path} must contain options and their values, such as samples: 30000")
    options: dict[str, Any] = {}
    for key, value in ((str(k), v) for k, v in stored.items()):
        if key not in KEYS:
            raise ValueError(f"{path} has the unknown option {key!r}{suggest(key, KEYS)}; known: {', '.join(KEYS)}")
        if value is None:
            raise ValueError(f"{key} in {path} must have a value, got null")
        check_value(Options, key, value, f"{key} in {path}")
        options[key] = _resolved(str(value), path.parent) if key in FILES else value
    if "score" in options:
        options["score"] = [_resolved_score(entry, path.parent) for entry in options["score"]]
    return options


def _resolved(file: str, folder: Path) -> str:
    """A path relative to the protocol's folder if it exists only there; otherwise unchanged."""
    relative = folder / file
    return str(relative) if not Path(file).exists() and relative.exists() else file


def _resolved_score(entry: str, folder: Path) -> str:
    name, equals, source = entry.partition("=")
    return f"{name}{equals}{_resolved(source, folder)}" if source else entry
