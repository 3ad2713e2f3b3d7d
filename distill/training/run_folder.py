"""A run and its folder: whose it is, who works in it now, what was finished in it, and the journals that it keeps."""

import dataclasses
import json
import math
import os
import socket
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

try:
    import fcntl
except ImportError:  # Windows: no lock there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
FIXED = ("batch_size", "max_norm", "ema", "precision")  # of train: what changes the weights that a step gives


def fingerprint(recipe: Recipe, plan: Plan, teacher: Teacher | None = None) -> str:
    """What must not change between a checkpoint and its resumption: seed, teacher, method, rates, the data's contents.

    Where the data lies may change, and so may how a batch is split over processes and micro-batches.
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
    """What is hashed of a plan's value: files by their content, not by their names."""
    if isinstance(value, Images):
        yield from _parts(value.contents)
    elif isinstance(value, Path) and value.is_file():
        yield from (value.stat().st_size.to_bytes(8, "big"), value)
    elif isinstance(value, Tensor):
        yield from (f"{value.dtype} {tuple(value.shape)}\n".encode(), tensor_bytes(value))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)
    else:
        yield f"{value!r}\n".encode()


def check_same_run(meta: dict[str, Any], recipe: Recipe, mark: str) -> None:
    if meta.get("fingerprint") != mark:
        raise ValueError(
            f"{recipe.folder} holds checkpoints of another recipe or of other data; "
            f"give this run another name (name=...) or remove {recipe.folder / 'checkpoints'}"
        )


def finished(recipe: Recipe, mark: str) -> bool:
    """Whether the run's folder already holds what this recipe would give."""
    meta = checkpoint.newest_meta(recipe.folder / "checkpoints")
    if meta is None:
        return False
    check_same_run(meta, recipe, mark)
    return meta["step"] >= recipe.train.steps and (recipe.folder / "pipeline" / "distill.json").is_file()


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Make the run's folder and keep it for this process, or say why that is impossible; before any weights load.

    The lock is the kernel's: it ends with the process, however that ends, so a dead run never blocks the next one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+")
    except OSError as error:
        raise ValueError(
            f"the run's folder {folder} cannot be written ({error.strerror}); choose another with output=..."
        ) from error
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                raise ValueError(
                    f"{folder} is in use by another run ({lock.read().strip() or 'of unknown process'}); "
                    "wait until it ends, or give this one another name (name=...)"
                ) from error
            except OSError:  # some network file systems have no locks
                warnings.warn(f"{folder} cannot be locked: start no second run in it", stacklevel=2)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


class JsonlLog:
    """A file of one JSON record a line, each with its `step`: appended to, however long the run.

    Whatever a killed run wrote after the checkpoint that this one resumes from, a torn last line too, is cut off first.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self.last: float = -1  # the step of the last record
        if not path.is_file():
            return
        lines = path.read_text(errors="replace").splitlines()
        kept = [line for line in lines if start and _step(line) <= start]
        self.last = max((_step(line) for line in kept), default=-1)
        if kept != lines:
            with atomic_write(path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept))

    def append(self, record: dict[str, Any]) -> None:
        """Add a line. A number that is not finite becomes null; a full disk costs the line, not the run."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        size = self.path.stat().st_size if self.path.is_file() else 0
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(finite) + "\n")
        except OSError as error:
            warnings.warn(f"no line could be added to {self.path} ({error.strerror})", stacklevel=2)
            if self.path.is_file():
                os.truncate(self.path, size)
        self.last = record["step"]


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # torn by a kill
