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

KEYS = ("prompts", "samples", "size", "seed", "batch_size", "features", "reference", "clip", "score", "allow_pickle")
FILES = ("prompts", "reference", "clip")


@reads
def read_protocol(path: Path) -> dict[str, Any]:
    """Read the options of a protocol.

    Args:
        path: The YAML file.

    Returns:
        Values by option name.

    Raises:
        ValueError: The file is missing, is not YAML, or has an unknown option or a value that cannot be used.
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
        relative = path.parent / str(value)
        use_relative = key in FILES and not Path(str(value)).exists() and relative.exists()
        options[key] = str(relative) if use_relative else value
    return options
