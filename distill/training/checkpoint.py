"""Checkpoints: written atomically, verified when they are read, and loaded without executing pickles.

A checkpoint is a folder `checkpoints/00000200`. It is written under a temporary name and renamed when every file is on
disk, so a folder with its final name is complete. `manifest.json` has the step, the SHA-256 of each file and its own: a
checkpoint that was damaged later is renamed, and the previous one is used. Weights are safetensors; optimizer states
are loaded with `weights_only`. The contents do not depend on the number of processes: tensors are unsharded and on the
CPU.
"""

import json
import re
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from teachers.support.checksums import MANIFEST, Damaged, read_manifest, verify_files, write_manifest
from teachers.support.files import atomic_write, remove, remove_folder
from teachers.support.text import read_text

FORMAT = 2
WEIGHTS, EMA, OPTIMIZERS, META = "weights.safetensors", "ema.safetensors", "optimizers.pt", "meta.json"
STEP = re.compile(r"[0-9]{8}|[1-9][0-9]{8,14}")  # the names of checkpoints
OTHER_FORMAT = (
    "{path} must be a checkpoint of format {expected}, got {found}; "
    "resume with the version that wrote it, or give this run another name (name=...)"
)


@dataclass
class Checkpoint:
    """Everything that a run needs to resume.

    Attributes:
        weights: State of the distiller: student and auxiliary networks.
        ema: State of the student's EMA.
        optimizers: The optimizer state of each phase, and the gradient scaler's as "scaler" if there is one.
        meta: step, seconds of training so far, and the fingerprint of recipe and data.
    """

    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizers: dict[str, Any]
    meta: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, keep: int, keep_every: int = 0) -> Path:
    """Write `checkpoint` as folder/STEP atomically, then remove old checkpoints.

    Args:
        folder: The folder of the run's checkpoints.
        checkpoint: The state to write.
        keep: How many of the newest checkpoints are kept.
        keep_every: Checkpoints of steps that are multiples of this are kept too; 0: none.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: If it cannot be written, such as on a full disk. Earlier checkpoints are then unchanged, and the
            incomplete one is removed.
    """
    final = folder / f"{checkpoint.meta['step']:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(final) as temporary:
            temporary.mkdir()
            save_file(contiguous(checkpoint.weights), temporary / WEIGHTS)
            save_file(contiguous(checkpoint.ema), temporary / EMA)
            torch.save(checkpoint.optimizers, temporary / OPTIMIZERS)
            (temporary / META).write_text(json.dumps(checkpoint.meta, indent=2), encoding="utf-8")
            write_manifest(temporary, {"format": FORMAT, "step": checkpoint.meta["step"]})
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk, also in torch's and safetensors' types
        earlier = saved_steps(folder)
        kept = f"the checkpoint of step {earlier[-1]} is kept" if earlier else "there is no earlier checkpoint"
        free = shutil.disk_usage(folder).free // 2**20 if folder.is_dir() else 0
        raise ValueError(
            f"the checkpoint of step {checkpoint.meta['step']} could not be written to {folder} "
            f"({' '.join(str(error).split())[:200]}; {free} MB are free); {kept}"
        ) from error
    for old in saved_steps(folder)[:-keep]:
        if not (keep_every and old % keep_every == 0):
            remove_folder(folder / f"{old:08d}")
    return final


def saved_steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in `folder`, in increasing order."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if STEP.fullmatch(p.name) and p.is_dir())


def newest_meta(folder: Path) -> dict[str, Any] | None:
    """The verified meta record of the newest checkpoint that has one, or None. Weights and optimizers are not read.

    Raises:
        ValueError: If a checkpoint has another format.
    """
    for step in reversed(saved_steps(folder)):
        try:
            return _verified(folder / f"{step:08d}", (META,))
        except (OSError, Damaged):
            continue
    return None


def quarantine_damaged(folder: Path) -> None:
    """Remove incomplete checkpoints, and rename damaged ones to `damaged-STEP` with a warning.

    Checkpoints are verified from the newest on, up to the first valid one. If there is none, nothing is renamed.

    Raises:
        ValueError: If every checkpoint is damaged, or if one has another format.
    """
    for incomplete in folder.glob(".*.tmp") if folder.is_dir() else []:
        shutil.rmtree(incomplete, ignore_errors=True)
    damaged: dict[Path, Damaged] = {}
    for step in reversed(saved_steps(folder)):
        path = folder / f"{step:08d}"
        try:
            _verified(path, (WEIGHTS, EMA, OPTIMIZERS, META))
            break
        except Damaged as damage:
            damaged[path] = damage
    else:
        if damaged:
            path, reason = next(reversed(damaged.items()))
            raise ValueError(
                f"the checkpoint {path} is damaged ({reason}), and there is no earlier valid one; "
                "restore one from a copy, or give this run another name (name=...) to start again"
            ) from reason
    for path, reason in damaged.items():
        renamed = folder / f"damaged-{path.name}"
        remove(renamed)
        path.replace(renamed)
        warnings.warn(
            f"the checkpoint {path} is damaged ({reason}); it becomes {renamed.name}, and the previous one is used",
            stacklevel=2,
        )


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint with tensors on the CPU, or None if there is none. Call `quarantine_damaged` first.

    Raises:
        ValueError: If its files cannot be read.
    """
    present = saved_steps(folder)
    if not present:
        return None
    newest = folder / f"{present[-1]:08d}"
    try:
        return Checkpoint(
            load_file(newest / WEIGHTS),
            load_file(newest / EMA),
            torch.load(newest / OPTIMIZERS, map_location="cpu", weights_only=True),
            json.loads(read_text(newest / META)),
        )
    except Exception as error:  # readers raise different types for damaged files
        raise ValueError(f"the checkpoint {newest} is damaged ({type(error).__name__}: {error})") from error


def _verified(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """The meta record of the checkpoint `path` after verifying its files `names`, which include `META`.

    Raises Damaged if a file differs from the manifest, ValueError for a folder of another format.
    """
    try:
        manifest = read_manifest(path)
    except Damaged:
        _refuse_other_format(path)
        raise
    except OSError as error:
        raise Damaged(f"{MANIFEST} is missing or cannot be read ({error.strerror})") from error
    if manifest.get("format") != FORMAT:
        raise ValueError(OTHER_FORMAT.format(path=path, expected=FORMAT, found=manifest.get("format")))
    if manifest.get("step") != int(path.name):
        raise Damaged(f"{MANIFEST} is that of step {manifest.get('step')}")
    verify_files(path, manifest["files"], names)
    meta: dict[str, Any] = json.loads(read_text(path / META))
    if not isinstance(meta, dict):
        raise Damaged(f"{META} must be a JSON object, got {type(meta).__name__}")
    if meta.get("step") != int(path.name):
        raise Damaged(f"{META} is that of step {meta.get('step')}")
    return meta


def _refuse_other_format(path: Path) -> None:
    """Raise ValueError for a checkpoint of format 1, whose manifest has no checksum."""
    try:
        found = json.loads(read_text(path / MANIFEST))["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    if found == 1:
        raise ValueError(OTHER_FORMAT.format(path=path, expected=FORMAT, found=found))


def contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors without shared memory, which safetensors requires; copied only if necessary."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate
