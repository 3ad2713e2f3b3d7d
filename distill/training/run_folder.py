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

from distill.config.recipe import OptimizerRecipe, Recipe, method_options
from distill.config.registry import TEACHERS, find
from distill.data.dataset import Plan
from distill.training import checkpoint
from teachers import pocket
from teachers.core.teacher import Teacher
from teachers.support.files import atomic_write
from teachers.support.keys import code, content, key
from teachers.support.locks import lock_folder

EXPORTED = "exported.json"  # says which checkpoint the folder's pipeline was exported from
CODE = "the code and its libraries"  # its name in a fingerprint
# What computes a training step, beside the method and the teacher.
LOOP = ("distill.train", "distill.training.engine", "distill.training.guard", "distill.training.optimizers")
BY_CONTENT = ("prompts", "images", "column", "streaming", "limit")  # keys of `data` that say what is read: it is hashed
SHOWN = 4  # changes that an error lists
TEMPORARY = (  # what an interrupted run leaves
    *(".pipeline*.tmp", ".*.json*.tmp", ".recipe.yaml*.tmp"),
    *("checkpoints/.*.tmp", "checkpoints/best/.*.tmp", "cache/**/.*.tmp"),
)
FIXED = ("batch_size", "max_norm", "ema", "precision")  # keys of `train` that change the result of a step


def fingerprint(recipe: Recipe, plan: Plan, teacher: Teacher | None = None) -> dict[str, str]:
    """Everything that must not change when a run is resumed, by name.

    It covers the seed, teacher, method, optimizers and the contents of the teacher and the data, not where these are,
    the number of processes or the number of micro-batches. The code and the versions of libraries are recorded under
    `CODE`; a change of these does not refuse a run.

    Args:
        recipe: The run's recipe.
        plan: The run's data.
        teacher: A teacher in memory, instead of the recipe's.

    Returns:
        Values of the recipe as JSON and hashes of contents, by name.
    """
    fixed = dataclasses.asdict(recipe)
    for name in ("name", "output", "evaluation"):
        del fixed[name]
    del fixed["teacher"]["path"]
    for name in BY_CONTENT:
        del fixed["data"][name]
    if not recipe.teacher.size:
        del fixed["teacher"]["size"]
    for name in ("checkpointing", "offload_teacher"):
        del fixed["memory"][name]
    if recipe.memory.tier == "full":
        fixed["memory"] = {"eight_bit": recipe.memory.eight_bit}
    fixed["train"] = {name: fixed["train"][name] for name in FIXED}
    method, options = method_options(recipe)
    fixed["method"] = {"name": recipe.method["name"]} | dataclasses.asdict(options)
    optimizers = {phase: recipe.optimizers.get(phase, OptimizerRecipe()) for phase in method.PHASES}
    fixed["optimizers"] = {phase: dataclasses.asdict(optimizer) for phase, optimizer in optimizers.items()}
    contents = stored_contents(recipe) if teacher is None else teacher.contents()
    family = find(TEACHERS, recipe.teacher.family) if teacher is None else type(teacher)
    return {
        **_flatten(fixed),
        **{f"the teacher's {name}": value for name, value in contents.items()},
        **_data_keys(plan),
        CODE: code(method, family, *LOOP),
    }


def run_key(identity: dict[str, str]) -> str:
    """One key for a fingerprint, without the code: results of the same run have the same key."""
    return key({name: value for name, value in identity.items() if name != CODE})


def stored_contents(recipe: Recipe) -> dict[str, str]:
    """What the recipe's teacher computes with, by name: its files, and the precision of its weights."""
    family: type[Teacher] = find(TEACHERS, recipe.teacher.family)
    assert recipe.teacher.path is not None
    return family.stored_contents(family.locate(recipe.teacher.path)) | {"precision": recipe.teacher.precision}


def _data_keys(plan: Plan) -> dict[str, str]:
    """A key of each part of the data."""
    found = {"the captions": key(plan.captions)}
    if plan.images is not None:
        found["the images"] = plan.images.content_key
    if plan.pocket:
        found["the pocket teacher's latents"] = content(pocket.FOLDER / "latents.safetensors")
    if plan.latents is not None:
        found["the latents"] = key(plan.latents)
    return found


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The leaves of nested groups as JSON, by dotted name."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: json.dumps(value)}
    return flat


def check_same_run(meta: dict[str, Any], recipe: Recipe, expected: dict[str, str]) -> None:
    """Raise ValueError if a checkpoint's meta record has another fingerprint than `expected`; it says what changed."""
    stored = meta.get("fingerprint")
    before = stored if isinstance(stored, dict) else {}
    names = [name for name in {**before, **expected} if name != CODE and before.get(name) != expected.get(name)]
    if not names:
        return
    changes = [_change(name, before.get(name), expected.get(name)) for name in names]
    more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    raise ValueError(
        f"{recipe.folder} holds checkpoints of another recipe or of other data ({', '.join(changes[:SHOWN])}{more}); "
        f"give this run another name (name=...) or remove {recipe.folder / 'checkpoints'}"
    )


def _change(name: str, before: str | None, after: str | None) -> str:
    if before is None or after is None:
        return f"{name} is {'new' if before is None else 'gone'}"
    return f"{name} changed" if name.startswith("the ") else f"{name} was {before} and is {after}"


def finished(recipe: Recipe, expected: dict[str, str]) -> bool:
    """Whether the run's folder already has the result of this recipe.

    Args:
        recipe: The run's recipe.
        expected: The run's fingerprint.

    Raises:
        ValueError: If the folder's checkpoints are of another recipe, of other data or of another teacher.
    """
    meta = checkpoint.newest_meta(recipe.folder / "checkpoints")
    if meta is None:
        return False
    check_same_run(meta, recipe, expected)
    if meta["step"] >= recipe.train.steps and is_exported(recipe.folder, meta, recipe):
        return True
    if meta["fingerprint"].get(CODE) != expected[CODE]:
        warnings.warn(
            f"{recipe.folder} was trained with other versions of the code or of its libraries up to step "
            f"{meta['step']}; the rest is not exactly what they would have computed",
            stacklevel=2,
        )
    return False


def is_exported(folder: Path, meta: dict[str, Any], recipe: Recipe | None = None) -> bool:
    """Whether the pipeline in a run's folder was exported from the checkpoint with the record `meta` or a later one.

    If a recipe is given, its train.export and its evaluation, which `distill.json` has, must be those of the export.
    """
    try:
        exported = json.loads((folder / EXPORTED).read_text(encoding="utf-8"))
        same = exported["fingerprint"] == key(meta["fingerprint"]) and exported["step"] >= meta["step"]
        same = same and (recipe is None or exported["options"] == export_key(recipe))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same and (folder / "pipeline" / "distill.json").is_file()


def record_export(recipe: Recipe, identity: dict[str, str], step: int) -> None:
    """Record which state the pipeline in a run's folder was exported from, for `is_exported`."""
    record = {"fingerprint": key(identity), "step": step, "options": export_key(recipe)}
    with atomic_write(recipe.folder / EXPORTED) as temporary:
        temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")


def export_key(recipe: Recipe) -> str:
    """A key of what an export depends on beside the run's fingerprint."""
    return key(recipe.train.export, recipe.evaluation)


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
        lines = path.read_text(errors="replace", encoding="utf-8").splitlines()
        valid = [line for line in lines if start and _step(line) <= start]
        self.last = max((_step(line) for line in valid), default=-1)
        if valid != lines:
            try:
                with atomic_write(path) as temporary:
                    temporary.write_text("".join(f"{line}\n" for line in valid), encoding="utf-8")
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
                with self.path.open("a", encoding="utf-8") as file:
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


def held_out_records(path: Path) -> list[dict[str, Any]]:
    """The records of `history.jsonl` in order, without an incomplete last line; [] if there is no such file."""
    lines = path.read_text(errors="replace", encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if math.isfinite(_step(line))]


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # an incomplete line
