"""Finished rows, kept so that running a comparison again costs only what changed.

A row lies in `cache/KEY/`: `figures.json`, `features.safetensors` (features, mean, covariance, scores) and
`images.png` (its first samples, one above the other). It is written beside its place and moved there whole, so a kill
loses at most the row being made.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from teachers.support.files import atomic_write, sha256

FORMAT = 3  # raise it whenever the same inputs would give other figures
NOT_WEIGHTS = {"distill.json", "README.md", ".gitattributes"}


@dataclass(frozen=True)
class Result:
    """One row as measured: figures, features (N, D), their mean and covariance, images (K, 3, H, W) in [0, 1], and CLIP
    scores (N,) where they were asked for."""

    figures: dict[str, Any]
    features: Tensor
    mean: Tensor
    covariance: Tensor
    images: Tensor
    scores: Tensor | None = None


def fingerprint(folder: Path) -> str:
    """sha256 over the names and contents of a pipeline's weights and configs; its card and notes do not count."""
    parts: list[bytes | memoryview | Path] = []
    for file in sorted(f for f in folder.rglob("*") if f.is_file() and f.name not in NOT_WEIGHTS):
        parts += [f"{file.relative_to(folder)}\n{file.stat().st_size}\n".encode(), file]
    return sha256(parts)


def content(source: str | None) -> str | None:
    """What stands for the weights that `source` names: a local folder's fingerprint, otherwise the name itself."""
    return fingerprint(Path(source)) if source and Path(source).is_dir() else source


def key(**parts: Any) -> str:
    """A folder's name for everything that a row depends on."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, default=str)
    return sha256([text.encode()])[:24]


def load(cache: Path, name: str) -> Result | None:
    """The finished row called `name`, or None where there is none (or a part of it cannot be read)."""
    folder = cache / name
    try:
        figures = json.loads((folder / "figures.json").read_text())
        stored = load_file(folder / "features.safetensors")
        with Image.open(folder / "images.png") as picture:
            strip = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
            width, height = picture.size
            count = figures["images"]
            images = strip.view(count, height // count, width, 3).permute(0, 3, 1, 2).float() / 255
        features, mean, covariance = (stored[name] for name in ("features", "mean", "covariance"))
        return Result(figures, features, mean, covariance, images, stored.get("scores"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError):
        return None  # a damaged row is no row: it is made again


def save(cache: Path, name: str, result: Result) -> None:
    """Keep a finished row under `name`."""
    count = len(result.images)
    tensors = {"features": result.features, "mean": result.mean, "covariance": result.covariance}
    if result.scores is not None:
        tensors["scores"] = result.scores
    rows = result.images.mul(255).round().byte().permute(0, 2, 3, 1)
    with atomic_write(cache / name) as temporary:
        temporary.mkdir(parents=True)
        (temporary / "figures.json").write_text(json.dumps({**result.figures, "images": count}, indent=2) + "\n")
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary / "features.safetensors")
        Image.fromarray(rows.reshape(-1, *rows.shape[2:]).numpy()).save(temporary / "images.png")
