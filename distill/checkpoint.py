"""Checkpoints: written whole or not at all, the newest complete one found again, no pickle ever executed.

A checkpoint is a folder `checkpoints/00000200` made under a temporary name and renamed when every file is on disk, so a
folder with its final name is complete. Weights are safetensors; optimizer states are read with `weights_only`.
"""

import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass
class Checkpoint:
    """What a run needs to go on: trained weights, their average, optimizers by turn, and the meta record."""

    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizers: dict[str, Any]
    meta: dict[str, Any]  # step, seconds of training so far, the recipe's fingerprint


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `checkpoint` as folder/STEP atomically, then drop all but the newest `keep`."""
    final = folder / f"{checkpoint.meta['step']:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(_plain(checkpoint.weights), temporary / "weights.safetensors")
    save_file(_plain(checkpoint.average), temporary / "average.safetensors")
    torch.save(checkpoint.optimizers, temporary / "optimizers.pt")
    (temporary / "meta.json").write_text(json.dumps(checkpoint.meta, indent=2))
    for file in temporary.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if final.exists():
        shutil.rmtree(final)
    temporary.replace(final)
    for old in steps(folder)[:-keep]:
        shutil.rmtree(folder / f"{old:08d}")
    return final


def steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in `folder`, rising."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdigit())


def newest_meta(folder: Path) -> dict[str, Any] | None:
    """The meta record of the newest complete checkpoint, or None."""
    found = steps(folder)
    return json.loads((folder / f"{found[-1]:08d}" / "meta.json").read_text()) if found else None


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, on the CPU, or None where there is none. ValueError where it is damaged."""
    found = steps(folder)
    if not found:
        return None
    newest = folder / f"{found[-1]:08d}"
    try:
        return Checkpoint(
            load_file(newest / "weights.safetensors"),
            load_file(newest / "average.safetensors"),
            torch.load(newest / "optimizers.pt", map_location="cpu", weights_only=True),
            json.loads((newest / "meta.json").read_text()),
        )
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"the checkpoint {newest} is damaged ({type(error).__name__}); "
            "remove that folder and run again to go on from the one before"
        ) from error


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
