"""What the makers of the pocket teachers store: finished stages and the files beside a pipeline."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from teachers.loading.saving import save_pipeline
from teachers.support.checksums import write_manifest
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


def stage(
    staged: Path,
    pipeline: DiffusionPipeline,
    judge: nn.Module,
    reference: dict[str, Tensor],
    shipped: dict[str, Tensor],
) -> None:
    """Write the weights of a teacher of clips or sounds without its card.

    Args:
        staged: The folder, which is replaced.
        pipeline: The pipeline; it is converted to half precision.
        judge: The judge.
        reference: What `statistics` returns.
        shipped: Latents as integers and their labels.
    """
    shutil.rmtree(staged, ignore_errors=True)
    save_pipeline(pipeline.to(torch.float16), staged / "pipeline")
    save_file(half(judge.state_dict()), staged / "judge.safetensors")
    save_file(reference, staged / "reference.safetensors")
    save_file(shipped, staged / "latents.safetensors")


def publish(staged: Path, out: Path, name: str, title: str) -> None:
    """Write the manifest of finished weights and copy them to the folder of the output."""
    write_manifest(staged, {"name": name})
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(staged, out)
    print(f"{title} was written to {out}")
