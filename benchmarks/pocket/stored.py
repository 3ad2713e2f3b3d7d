"""What the makers of the pocket teachers store: finished stages and the files beside a pipeline."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from teachers.support.files import atomic_write

T = TypeVar("T")


def cached(path: Path, build: Callable[[], T]) -> T:
    """What is stored at `path`, or else `build()`, stored atomically; its tensors are on the CPU."""
    if not path.exists():
        value = build()
        with atomic_write(path) as temporary:
            torch.save(value, temporary)
    stored: T = torch.load(path, map_location="cpu", weights_only=True)
    return stored


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with floating-point values in half precision."""
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}


def statistics(features: Tensor, shipped: int) -> dict[str, Tensor]:
    """Mean and covariance of the features (N, D) of real samples, and the first `shipped` of the features."""
    exact = features.double()
    return {"mean": exact.mean(0), "covariance": exact.T.cov(), "features": exact[:shipped].half().contiguous()}


def integers(latents: Tensor, step: float) -> Tensor:
    """Latents as 8-bit integers, whose unit is `step`."""
    return (latents.float() / step).round().clamp(-127, 127).to(torch.int8)
