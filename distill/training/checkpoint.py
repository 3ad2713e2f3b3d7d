"""Checkpoints: written whole or not at all, the newest sound one found again, no pickle ever executed.

A checkpoint is a folder `checkpoints/00000200` made under a temporary name and renamed when every file is on disk, so a
folder with its final name is complete. `manifest.json` has each file's SHA-256: what a disk has damaged since is set
aside, and the checkpoint before is taken. Weights are safetensors; optimizer states are read with `weights_only`.
What is stored does not depend on the number of processes: tensors are whole, on the CPU.
"""

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from teachers.support.files import atomic_write, remove_folder, sha256_file

FORMAT = 1
WEIGHTS, EMA, OPTIMIZERS, META = "weights.safetensors", "ema.safetensors", "optimizers.pt", "meta.json"
MANIFEST = "manifest.json"


@dataclass
class Checkpoint:
    """What a run needs to go on: trained weights, their average, optimizers by turn, and the meta record."""

    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizers: dict[
        str, Any
    ]  # "turn": its optimizer's state_dict; "scaler": the gradient scaler's, where there is one
    meta: dict[str, Any]  # step, seconds of training so far, the recipe's fingerprint


class Damaged(Exception):
    """A checkpoint whose files are not what its manifest says."""


def save(folder: Path, checkpoint: Checkpoint, keep: int, keep_every: int = 0) -> Path:
    """Write `checkpoint` as folder/STEP atomically, then drop all but the newest `keep` and every `keep_every`th step.

    ValueError where it cannot be written (a full disk): what was there before is still there, and the half is gone.
    """
    final = folder / f"{checkpoint.meta['step']:08d}"
    try:
        with atomic_write(final) as temporary:
            temporary.mkdir(parents=True)
            save_file(_plain(checkpoint.weights), temporary / WEIGHTS)
            save_file(_plain(checkpoint.ema), temporary / EMA)
            torch.save(checkpoint.optimizers, temporary / OPTIMIZERS)
            (temporary / META).write_text(json.dumps(checkpoint.meta, indent=2))
            files = {f.name: {"bytes": f.stat().st_size, "sha256": sha256_file(f)} for f in temporary.iterdir()}
            (temporary / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=2))
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap a full disk in their own
        before = steps(folder)
        kept = f"the checkpoint of step {before[-1]} is kept" if before else "there is no earlier one"
        free = shutil.disk_usage(folder).free // 2**20 if folder.is_dir() else 0
        raise ValueError(
            f"the checkpoint of step {checkpoint.meta['step']} could not be written to {folder} "
            f"({' '.join(str(error).split())[:200]}; {free} MB are free); {kept}"
        ) from error
    found = steps(folder)
    for old in found[:-keep]:
        if not (keep_every and old % keep_every == 0):
            remove_folder(folder / f"{old:08d}")
    return final


def steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in `folder`, rising."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdigit())


def newest_meta(folder: Path) -> dict[str, Any] | None:
    """The meta record of the newest checkpoint that has one to read, or None. Nothing else of it is looked at."""
    for step in reversed(steps(folder)):
        try:
            return json.loads((folder / f"{step:08d}" / META).read_text())
        except (OSError, ValueError):
            continue
    return None


def quarantine_damaged(folder: Path) -> None:
    """Clear what killed saves left, and set damaged checkpoints newer than the newest sound one aside, with a warning.

    ValueError, with the folder's name, for what is no checkpoint of this version, or where every one is damaged.
    """
    for left in folder.glob(".*.tmp") if folder.is_dir() else []:
        shutil.rmtree(left, ignore_errors=True)
    found = steps(folder)
    for step in reversed(found):
        path = folder / f"{step:08d}"
        try:
            _verify(path)
            return
        except Damaged as damage:
            if step == found[0]:
                raise ValueError(
                    f"the checkpoint {path} is damaged ({damage}), and there is no sound one before it; "
                    f"remove {folder} to start afresh"
                ) from damage
            aside = folder / f"damaged-{path.name}"
            shutil.rmtree(aside, ignore_errors=True)
            path.replace(aside)
            warnings.warn(
                f"the checkpoint {path} is damaged ({damage}): set aside as {aside.name}; going on from the one before",
                stacklevel=2,
            )


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, on the CPU, or None where there is none. ValueError where it is damaged: `quarantine_damaged` first."""
    found = steps(folder)
    if not found:
        return None
    newest = folder / f"{found[-1]:08d}"
    try:
        return Checkpoint(
            load_file(newest / WEIGHTS),
            load_file(newest / EMA),
            torch.load(newest / OPTIMIZERS, map_location="cpu", weights_only=True),
            json.loads((newest / META).read_text()),
        )
    except Exception as error:  # torn files make each reader fail in its own way
        raise ValueError(f"the checkpoint {newest} is damaged ({type(error).__name__}: {error})") from error


def _verify(path: Path) -> None:
    """Damaged where a file is not what the manifest says; ValueError where this is no checkpoint of ours."""
    try:
        text = (path / MANIFEST).read_text()
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise ValueError(
                f"{path} has no {MANIFEST}: it is not a checkpoint that this version wrote; "
                "remove it, or give this run another name (name=...)"
            ) from error
        raise Damaged(f"{MANIFEST}: {error}") from error
    try:
        manifest = json.loads(text)
        version, files = manifest["format"], dict(manifest["files"])
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{MANIFEST} is not readable") from error
    if version != FORMAT:
        raise ValueError(
            f"{path} is a checkpoint of format {version}, this version writes {FORMAT}; "
            "resume with the version that wrote it, or give this run another name (name=...)"
        )
    for name in (WEIGHTS, EMA, OPTIMIZERS, META):
        file = path / name
        if name not in expected or not file.is_file():
            raise Damaged(f"{name} is missing")
        if file.stat().st_size != expected[name][0] or sha256_file(file) != expected[name][1]:
            raise Damaged(f"{name} is not what was written")


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """CPU tensors that share no memory, as safetensors wants them; no copy where there need be none."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    return plain
