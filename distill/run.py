"""A run and its folder: whose it is, what was finished in it, and how it is left when somebody asks it to stop."""

import dataclasses
import hashlib
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

from distill import checkpoint
from distill.recipe import Recipe


def fingerprint(recipe: Recipe) -> str:
    """What must not change between a checkpoint and its resumption: seed, teacher, method, data, rates."""
    fixed = dataclasses.asdict(recipe)
    for key in ("name", "output", "evaluation"):
        del fixed[key]
    fixed["train"] = {
        key: fixed["train"][key] for key in ("batch_size", "accumulation", "max_norm", "ema", "precision")
    }
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def check_same_run(meta: dict[str, Any], recipe: Recipe, folder: Path) -> None:
    if meta["fingerprint"] != fingerprint(recipe):
        raise ValueError(
            f"{folder} holds checkpoints of another recipe; "
            f"give this run another name (name=...) or remove {folder / 'checkpoints'}"
        )


def finished(recipe: Recipe) -> bool:
    """Whether the run's folder already holds what this recipe would give."""
    meta = checkpoint.newest_meta(recipe.folder / "checkpoints")
    if meta is None:
        return False
    check_same_run(meta, recipe, recipe.folder)
    return meta["step"] >= recipe.train.steps and (recipe.folder / "pipeline" / "distill.json").is_file()


def claim(folder: Path) -> None:
    """Make the run's folder, or say why that is impossible; made before any weights load."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"the run's folder {folder} cannot be written ({error.strerror}); choose another with output=..."
        ) from error


class Journal:
    """A file of one JSON record a line, each with its `step`: appended to, however long the run.

    Whatever a killed run wrote after the checkpoint that this one resumes from, a torn last line too, is cut off first.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        if not path.is_file():
            return
        lines = path.read_text(errors="replace").splitlines()
        kept = [line for line in lines if start and _step(line) <= start]
        if kept != lines:
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(f"{line}\n" for line in kept))
            temporary.replace(path)

    def append(self, record: dict[str, Any]) -> None:
        """Add a line; a number that is not finite becomes null, since JSON has no other word for it."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(finite) + "\n")


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # torn by a kill


class Stop:
    """SIGINT and SIGTERM ask the loop to save and leave after the step at hand; a second one does not wait."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not in the main thread (a notebook's worker): the signal stays with its owner
                return

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True
        self.restore()

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
