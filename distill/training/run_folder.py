"""The folder of a run: its fingerprint, its lock, and whether it is finished."""

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from distill.config.recipe import Recipe, method_options, with_defaults
from distill.config.registry import TEACHERS, find
from distill.config.run_files import CHECKPOINTS, FOLDERS, OWN, PIPELINE, TEMPORARY
from distill.data.plan import Plan
from distill.training import checkpoint
from distill.training.export_record import changed_since_export, export_key, export_record
from teachers.core.teacher import Teacher
from teachers.loading.load_errors import loading_errors
from teachers.loading.location import INDEX, config_source
from teachers.loading.lora_files import lora_contents
from teachers.loading.source import check_trusted
from teachers.support.errors import reading
from teachers.support.keys import code, key
from teachers.support.locks import lock_folder
from teachers.support.text import first_names

CODE = "the code and its libraries"  # its name in a fingerprint
# What computes a training step, apart from the method and the teacher.
LOOP = ("distill.train", *(f"distill.training.{name}" for name in ("step", "engine", "guard", "optimizers")))
BY_CONTENT = ("prompts", "images", "column", "streaming", "limit")  # keys of `data` that say what is read: it is hashed
EXPORT_ONLY = ("method.second_times", "method.scm.second_times")  # options that only the export depends on
SHOWN = 4  # changes that an error lists
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
    fixed = dataclasses.asdict(with_defaults(recipe))
    for name in ("name", "output", "evaluation", "export"):
        del fixed[name]
    del fixed["teacher"]["path"]
    for name in BY_CONTENT:
        del fixed["data"][name]
    del fixed["teacher"]["loras"]  # hashed with the teacher's contents
    family = find(TEACHERS, recipe.teacher.family) if teacher is None else type(teacher)
    if recipe.teacher.sigma_data == family.sigma_data:  # the default
        fixed["teacher"]["sigma_data"] = None
    for name in ("size", "negative_prompt", "image_guidance", "sigma_data"):
        if not fixed["teacher"][name]:
            del fixed["teacher"][name]
    for name in ("checkpointing", "offload_teacher", "quantize"):  # the contents have the last one
        del fixed["memory"][name]
    if recipe.memory.tier == "full":
        fixed["memory"] = {"eight_bit": recipe.memory.eight_bit}
    fixed["train"] = {name: fixed["train"][name] for name in FIXED}
    if recipe.train.ema_half_lives:
        fixed["train"]["ema"] = list(recipe.train.ema_half_lives)
    method, _ = method_options(recipe)
    with reading(recipe.teacher.path or "the teacher"):
        contents = stored_contents(recipe) if teacher is None else teacher.contents()
    return {
        **{name: value for name, value in _json(fixed).items() if name not in EXPORT_ONLY},
        **{f"the teacher's {name}": value for name, value in contents.items()},
        **_data_keys(plan),
        CODE: code(method, family, *LOOP),
    }


def run_key(identity: dict[str, str]) -> str:
    """One key for a fingerprint, without the code: results of the same run have the same key."""
    return key({name: value for name, value in identity.items() if name != CODE})


def stored_key(meta: dict[str, Any]) -> str:
    """The key of the run that a checkpoint's meta record is of; that of no run if it has no fingerprint."""
    identity = meta.get("fingerprint")
    return run_key(identity) if isinstance(identity, dict) else ""


def check_teacher_files(recipe: Recipe) -> None:
    """Check what the files of the recipe's teacher name, before anything else of the run.

    Raises:
        ValueError: If a file names code or a file outside its folder; see `check_trusted`.
    """
    family: type[Teacher] = find(TEACHERS, recipe.teacher.family)
    assert recipe.teacher.path is not None
    path = family.locate(recipe.teacher.path)
    source = config_source(path)
    if (Path(source) / INDEX).is_file():
        with loading_errors(path):
            check_trusted(source, (family, *family.pipelines, *family.components))


def stored_contents(recipe: Recipe) -> dict[str, str]:
    """What the recipe's teacher computes with, by name: its files, and the precision and form of its weights.

    Raises:
        ValueError: If a file of the teacher's pipeline names code or a file outside its folder; see `check_trusted`.
    """
    family: type[Teacher] = find(TEACHERS, recipe.teacher.family)
    assert recipe.teacher.path is not None
    path = family.locate(recipe.teacher.path)
    check_teacher_files(recipe)
    fine_tunes = lora_contents(recipe.teacher.loras)
    weights: dict[str, str] = {"precision": recipe.teacher.precision}
    if recipe.memory.quantize != "none":
        weights["quantization"] = recipe.memory.quantize
    return family.stored_contents(path) | fine_tunes | weights


def _data_keys(plan: Plan) -> dict[str, str]:
    """A key of each part of the data."""
    found = {"the captions": key(plan.captions)}
    if plan.images is not None:
        found["the images"] = plan.images.content_key
    if plan.latents is not None:
        found[plan.latents.title] = plan.latents.content_key
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested groups by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _json(values: Mapping[str, Any]) -> dict[str, str]:
    """The leaves of nested groups as JSON, by dotted name."""
    return {name: json.dumps(value, default=partial(_text, name)) for name, value in flatten(values).items()}


def _text(name: str, value: object) -> str:
    """A path as text; other values of a method's options have no form that a later process could compare."""
    if isinstance(value, Path):
        return str(value)
    raise ValueError(f"{name} must consist of numbers, texts and paths, got a {type(value).__name__}")


def check_same_run(meta: dict[str, Any], recipe: Recipe, expected: dict[str, str]) -> None:
    """Raise ValueError if a checkpoint's meta record has another fingerprint than `expected`; it says what changed."""
    stored = meta.get("fingerprint")
    before = stored if isinstance(stored, dict) else {}
    known = {**before, **expected}.keys() - {CODE, *EXPORT_ONLY}
    names = [name for name in {**before, **expected} if name in known and before.get(name) != expected.get(name)]
    if not names:
        return
    changes = [_change(name, before.get(name), expected.get(name)) for name in names]
    raise ValueError(
        f"{recipe.folder} holds checkpoints of another recipe or of other data ({first_names(changes, SHOWN)}); "
        f"give this run another name (name=...) or remove {recipe.folder / 'checkpoints'}"
    )


def _change(name: str, before: str | None, after: str | None) -> str:
    if before is None or after is None:
        return f"{name} is {'new' if before is None else 'gone'}"
    return f"{name} changed" if name.startswith("the ") else f"{name} was {before} and is {after}"


def finished(recipe: Recipe, expected: dict[str, str]) -> bool:
    """Whether the run's folder already has the result of this recipe: the export's record and every file must agree.

    Args:
        recipe: The run's recipe.
        expected: The run's fingerprint.

    Raises:
        ValueError: If the folder's checkpoints are of another recipe, of other data or of another teacher, or of later
            steps than the recipe's last.
    """
    meta = checkpoint.newest_meta(recipe.folder / CHECKPOINTS)
    if meta is None:
        return False
    check_same_run(meta, recipe, expected)
    record = export_record(recipe.folder, run_key(expected))
    done = record is not None and record["step"] == recipe.train.steps and record["options"] == export_key(recipe)
    if record is not None and done and not record["failed"]:
        changed = changed_since_export(recipe.folder, record)
        if not changed:
            return True
        warnings.warn(
            f"{recipe.folder / PIPELINE} is not as it was exported ({first_names(changed, SHOWN)} changed); "
            "it is exported again",
            stacklevel=2,
        )
    if meta["step"] > recipe.train.steps:
        raise ValueError(
            f"train.steps must be at least {meta['step']}, the step that {recipe.folder} has reached, got "
            f"{recipe.train.steps}; or give this run another name (name=...)"
        )
    if meta["fingerprint"].get(CODE) != expected[CODE]:
        warnings.warn(
            f"{recipe.folder} was trained with other versions of the code or of its libraries up to step "
            f"{meta['step']}; the remaining steps can give slightly different results",
            stacklevel=2,
        )
    return False


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Create the run's folder and lock it for this process; see `lock_folder`.

    Raises:
        ValueError: If the folder cannot be written, is in use by another process, or has a link or a special file where
            the run writes.
    """
    advice = "give this run another name (name=...) or another folder (output=...)"
    with lock_folder(folder, "the run's folder", advice, TEMPORARY, (*OWN, folder.name), FOLDERS):
        yield
