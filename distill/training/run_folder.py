"""The folder of a run: its fingerprint, its lock, whether it is finished, and its JSONL logs."""

import dataclasses
import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.config.recipe import Recipe
from distill.data.dataset import Plan
from distill.data.images import Images
from distill.training import checkpoint
from teachers.core.teacher import Teacher
from teachers.support.files import atomic_write, sha256, tensor_bytes
from teachers.support.locks import lock_folder

TEMPORARY = (".pipeline*.tmp", ".*.jsonl*.tmp", ".recipe.yaml*.tmp", "checkpoints/.*.tmp", "cache/**/.*.tmp")
FIXED = ("batch_size", "max_norm", "ema", "precision")  # keys of `train` that change the result of a step


def fingerprint(recipe: Recipe, plan: Plan, teacher: Teacher | None = None) -> str:
    """A hash of everything that must not change when a run is resumed.

    It covers the seed, teacher, method, optimizers and the contents of the data. It does not cover the location of the
    data, the number of processes or the number of micro-batches.

    Args:
        recipe: The run's recipe.
        plan: The run's data.
        teacher: A teacher in memory, whose weights are then part of the hash.

    Returns:
        A SHA-256 in hexadecimal digits.
    """
    fixed = dataclasses.asdict(recipe)
    for key in ("name", "output", "evaluation", "data"):
        del fixed[key]
    for key in ("checkpointing", "offload_teacher"):
        del fixed["memory"][key]
    if recipe.memory.tier == "full":
        fixed["memory"] = {"eight_bit": recipe.memory.eight_bit}
    fixed["train"] = {key: fixed["train"][key] for key in FIXED}
    parts: list[bytes | memoryview | Path] = [json.dumps(fixed, sort_keys=True).encode()]
    if teacher is not None:
        parts.append(teacher.digest().encode())
    for field in dataclasses.fields(plan):
        parts += [f"\n{field.name}:".encode(), *_parts(getattr(plan, field.name))]
    return sha256(parts)


def _parts(value: Any) -> Iterator[bytes | memoryview | Path]:
    """What is hashed of a data plan's value: files by their contents, not by their names."""
    if isinstance(value, Images):
        yield from _parts(value.fingerprint_parts)
    elif isinstance(value, Path) and value.is_file():
        yield from (value.stat().st_size.to_bytes(8, "big"), value)
    elif isinstance(value, Tensor):
        yield from (f"{value.dtype} {tuple(value.shape)}\n".encode(), tensor_bytes(value))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)
    else:
        yield f"{value!r}\n".encode()


def check_same_run(meta: dict[str, Any], recipe: Recipe, expected: str) -> None:
    """Raise ValueError if a checkpoint's meta record has another fingerprint than `expected`."""
    if meta.get("fingerprint") != expected:
        raise ValueError(
            f"{recipe.folder} holds checkpoints of another recipe or of other data; "
            f"give this run another name (name=...) or remove {recipe.folder / 'checkpoints'}"
        )


def finished(recipe: Recipe, expected: str) -> bool:
    """Whether the run's folder already has the result of this recipe.

    Args:
        recipe: The run's recipe.
        expected: The run's fingerprint.

    Raises:
        ValueError: If the folder's checkpoints are of another recipe or of other data.
    """
    meta = checkpoint.newest_meta(recipe.folder / "checkpoints")
    if meta is None:
        return False
    check_same_run(meta, recipe, expected)
    return meta["step"] >= recipe.train.steps and (recipe.folder / "pipeline" / "distill.json").is_file()


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Create the run's folder and lock it for this process; see `lock_folder`.

    Raises:
        ValueError: If the folder cannot be written, or is in use by another process.
    """
    advice = "give this run another name (name=...) or another folder (output=...)"
    with lock_folder(folder, "the run's folder", advice, TEMPORARY):
        yield


@contextmanager
def warn_if_unwritable(what: str) -> Iterator[None]:
    """Replace an OSError of the block, such as that of a full disk, by a warning that `what` is lost."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{what} could not be written ({error})", stacklevel=3)


class JsonlLog:
    """A log file with one JSON record, with the key `step`, in each line.

    Args:
        path: The file.
        start: The step that the run resumes from. Later records, which an interrupted run wrote after its last
            checkpoint, and an incomplete last line are removed.

    Attributes:
        last: The step of the last record; -1 if there is none.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self.last: float = -1
        if not path.is_file():
            return
        lines = path.read_text(errors="replace").splitlines()
        valid = [line for line in lines if start and _step(line) <= start]
        self.last = max((_step(line) for line in valid), default=-1)
        if valid != lines:
            try:
                with atomic_write(path) as temporary:
                    temporary.write_text("".join(f"{line}\n" for line in valid))
            except OSError as error:
                self._warn("later records could not be removed from", error)

    def append(self, record: dict[str, Any]) -> None:
        """Append `record`. Non-finite numbers become null.

        If the file cannot be written (a full disk, a file system that became read-only), the record is lost with a
        warning.
        """
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        try:
            size = self.path.stat().st_size if self.path.is_file() else 0
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps(finite) + "\n")
            except OSError:
                if self.path.is_file():
                    os.truncate(self.path, size)  # an incomplete line
                raise
        except OSError as error:
            self._warn("a record could not be written to", error)
        self.last = record["step"]

    def _warn(self, what: str, error: OSError) -> None:
        warnings.warn(f"{what} {self.path} ({error.strerror or error})", stacklevel=3)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # an incomplete line
