"""The best EMA of a run so far: `checkpoints/best/ema.safetensors`.

The file has the EMA's weights and, as its metadata, the record of their evaluation; checksums cover both
(`teachers.support.checksums`). As it is one file, a new best replaces the old one at once, and a killed run has one of
them.
"""

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from distill.training.checkpoint import contiguous
from teachers.support.checksums import Damaged, load_tensors, read_metadata, save_tensors
from teachers.support.files import atomic_write

BEST, FILE = "best", "ema.safetensors"


def save_best(folder: Path, ema: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Replace the best EMA atomically.

    Args:
        folder: The folder of the run's checkpoints.
        ema: The unsharded state of the EMA.
        record: JSON values: step, seconds, held_out_frechet, evaluation (`Monitor.key`) and fingerprint (`run_key`).

    Raises:
        ValueError: If it cannot be written, such as on a full disk; the earlier one is then unchanged.
    """
    tensors = contiguous(dict(ema))
    metadata = {"record": json.dumps(dict(record))}
    try:
        (folder / BEST).mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / BEST / FILE) as temporary:
            save_tensors(temporary, tensors, metadata)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"the best EMA, of step {record['step']}, could not be written to {folder / BEST} "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


def best_record(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The record of the best EMA; None if there is none, or if it belongs to another recipe or to other data.

    None, with a warning, if the record is damaged.
    """
    path = folder / BEST / FILE
    try:
        record: dict[str, Any] = json.loads(read_metadata(path)["record"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError):
        warnings.warn(f"the record of the best EMA {path} is damaged; it is not used", stacklevel=2)
        return None
    return record if record.get("fingerprint") == fingerprint else None


def load_best(folder: Path) -> dict[str, Tensor] | None:
    """The weights of the best EMA on the CPU; None, with a warning, if the file is damaged."""
    path = folder / BEST / FILE
    try:
        return load_tensors(path)[0]
    except (OSError, Damaged):
        warnings.warn(f"the best EMA {path} is damaged; it is not used", stacklevel=2)
        return None


def score(distances: Mapping[str, float | None], floor: float = 1e-12) -> float:
    """The geometric mean of the held-out distances of all numbers of steps; infinite if one of them is not finite.

    Args:
        distances: Held-out Frechet distances by number of steps; None stands for one that is not finite.
        floor: Smaller distances count as this.
    """
    values = [math.inf if value is None else max(value, floor) for value in distances.values()]
    return math.exp(sum(map(math.log, values)) / len(values)) if all(map(math.isfinite, values)) else math.inf
