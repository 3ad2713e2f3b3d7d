"""A protocol: one YAML file with the options of `python -m eval` that a published evaluation fixes.

    python -m eval RUN --protocol recipes/eval/coco30k.yaml

Its keys are the options' names. What the command line says outright wins, and the report names both. Files that a
protocol names are looked for from here, then from the protocol's own folder.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

KINDS: Mapping[str, type] = {
    "prompts": str,
    "samples": int,
    "size": int,
    "seed": int,
    "batch_size": int,
    "features": str,
    "reference": str,
    "clip": str,
}
FILES = ("prompts", "reference", "clip")


def read_protocol(path: Path) -> dict[str, Any]:
    """The options that the protocol at `path` sets. Raises ValueError, one sentence, for whatever is wrong in it."""
    if not path.is_file():
        raise ValueError(f"there is no protocol {path}; name a YAML file such as recipes/eval/coco30k.yaml")
    try:
        stored = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(stored, dict) or not stored:
        raise ValueError(f"{path} has to hold options and their values, such as samples: 30000")
    out: dict[str, Any] = {}
    for key, value in ((str(k), v) for k, v in stored.items()):
        kind = KINDS.get(key)
        if kind is None:
            close = difflib.get_close_matches(key, KINDS, n=1)
            meant = f', did you mean "{close[0]}"?' if close else ";"
            raise ValueError(f'{path} has the unknown option "{key}"{meant} known are {", ".join(KINDS)}')
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{path} sets {key} to {value!r}; it has to be {'a number' if kind is int else 'a text'}")
        near = path.parent / str(value)
        out[key] = str(near) if key in FILES and not Path(str(value)).exists() and near.exists() else value
    return out
