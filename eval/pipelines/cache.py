"""A cache of measured rows, so a repeated comparison measures only rows that changed.

A row is the folder `cache/KEY/` with `figures.json`, `features.safetensors` (features, mean, covariance and scores),
its first samples (`images.png`, images one above the other, or `samples.safetensors`, clips or sounds), those of them
that the report shows, before they were resized (`gallery.png`, `gallery.safetensors`), and `manifest.json` (the row's
key and the SHA-256 of each file).
It is written under a temporary name and then renamed, so an interruption loses at most the current row. A row that was
damaged later is measured again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from teachers.support.checksums import read_manifest, verify_files, write_manifest
from teachers.support.files import atomic_write
from teachers.support.regular import check_special
from teachers.support.text import read_text

FIGURES, FEATURES = "figures.json", "features.safetensors"
# The files of images, and of clips, in 8 bits, and sounds, in 16 bits.
IMAGES, GALLERY = ("images.png", "samples.safetensors"), ("gallery.png", "gallery.safetensors")
LARGEST = {torch.uint8: 255, torch.int16: 32767}  # the integer of 1.0
IMAGE_TOO_LARGE = Image.DecompressionBombError
SCORES = "scores/"  # prefix of the tensors of scores; the rest is the metric's key


@dataclass(frozen=True)
class Result:
    """One measured row.

    Attributes:
        figures: Measurements by name, as JSON values.
        features: Features of the samples (N, D).
        mean: Mean of the features (D,), float64.
        covariance: Covariance of the features (D, D), float64.
        images: The first samples in the judged range: images (K, 3, H, W) or clips (K, 3, F, H, W) in [0, 1], sounds
            (K, channels, samples) in [-1, 1], resized if the comparison resizes images.
        scores: Scores by metric key.
        gallery: The first samples at their own size, if `images` were resized.
    """

    figures: dict[str, Any]
    features: Tensor
    mean: Tensor
    covariance: Tensor
    images: Tensor
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    gallery: Tensor | None = None


def load(cache: Path, name: str) -> Result | None:
    """The row called `name`, or None if it does not exist, is damaged or has another name."""
    folder = cache / name
    try:
        check_special(folder)
        manifest = read_manifest(folder)
        if manifest.get("key") != name:
            return None
        kind = 0 if IMAGES[0] in manifest["files"] else 1
        names = [FIGURES, FEATURES, IMAGES[kind], *([GALLERY[kind]] if GALLERY[kind] in manifest["files"] else [])]
        verify_files(folder, manifest["files"], names)
        figures = json.loads(read_text(folder / FIGURES))
        stored = load_file(folder / FEATURES)
        images = _load_samples(folder / IMAGES[kind], figures["images"])
        count = figures.pop("gallery", None)
        gallery = _load_samples(folder / GALLERY[kind], count) if GALLERY[kind] in names else None
        features, mean, covariance = (stored[name] for name in ("features", "mean", "covariance"))
        width = features.shape[1]
        if mean.shape != (width,) or covariance.shape != (width, width) or not features.is_floating_point():
            raise ValueError("features, mean and covariance must fit together")
        scores = {name.removeprefix(SCORES): value for name, value in stored.items() if name.startswith(SCORES)}
        return Result(figures, features, mean, covariance, images, scores, gallery)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        IndexError,
        ArithmeticError,
        SafetensorError,
        IMAGE_TOO_LARGE,
    ):
        return None  # a damaged row is measured again


def save(cache: Path, name: str, result: Result) -> None:
    """Write a measured row as `name`."""
    cache.mkdir(parents=True, exist_ok=True)
    counts = {"images": len(result.images)} | ({} if result.gallery is None else {"gallery": len(result.gallery)})
    tensors = {"features": result.features, "mean": result.mean, "covariance": result.covariance}
    tensors |= {f"{SCORES}{metric}": scores for metric, scores in result.scores.items()}
    with atomic_write(cache / name) as temporary:
        temporary.mkdir()
        (temporary / FIGURES).write_text(json.dumps({**result.figures, **counts}, indent=2) + "\n", encoding="utf-8")
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary / FEATURES)
        _save_samples(result.images, temporary, IMAGES)
        if result.gallery is not None:
            _save_samples(result.gallery, temporary, GALLERY)
        write_manifest(temporary, {"key": name})


def _save_samples(samples: Tensor, folder: Path, names: tuple[str, str]) -> None:
    if samples.ndim == 4:
        rows = samples.mul(255).round().byte().permute(0, 2, 3, 1)
        Image.fromarray(rows.reshape(-1, *rows.shape[2:]).numpy()).save(folder / names[0])
        return
    kind = torch.uint8 if samples.ndim == 5 else torch.int16
    save_file({"samples": samples.mul(LARGEST[kind]).round().to(kind).contiguous()}, folder / names[1])


def _load_samples(file: Path, count: int) -> Tensor:
    if file.suffix == ".safetensors":
        stored = load_file(file)["samples"]
        return stored.float() / LARGEST[stored.dtype]
    with Image.open(file) as sheet:
        pixels = torch.frombuffer(bytearray(sheet.convert("RGB").tobytes()), dtype=torch.uint8)
        width, height = sheet.size
        return pixels.view(count, height // count, width, 3).permute(0, 3, 1, 2).float() / 255
