"""Samples in TensorBoard and Weights & Biases: a grid of stills, and clips and sounds that play."""

import io
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teachers.media import Audio, Medium, Video
from teachers.media.pictures import tile, to_bytes, to_pil
from teachers.media.video_writing import animation


def log_samples(
    tracker: Any,
    step: int,
    names: Sequence[str],
    grid: Tensor,
    rows: Sequence[Tensor],
    medium: Medium,
    wandb: Any = None,
) -> None:
    """Log samples to one of accelerate's trackers; do nothing for other trackers than these two.

    Args:
        tracker: The tracker.
        step: The training step.
        names: The names of the rows.
        grid: The grid of stills as one picture (3, H, W) in [0, 1].
        rows: Samples (B, ...) of each row, equally many. Clips may be smaller than those of `medium`.
        medium: Their medium.
        wandb: The package wandb; None: it is imported.
    """
    if tracker.name == "tensorboard":
        _to_tensorboard(tracker.writer, step, names, grid, rows, medium)
    elif tracker.name == "wandb":
        with tempfile.TemporaryDirectory() as folder:  # wandb reads the files while it logs them
            package = import_module("wandb") if wandb is None else wandb
            tracker.log(_for_wandb(package, Path(folder), names, grid, rows, medium), step=step)


def _to_tensorboard(
    writer: Any, step: int, names: Sequence[str], grid: Tensor, rows: Sequence[Tensor], medium: Medium
) -> None:
    writer.add_image("samples", grid, step)
    if isinstance(medium, Video):
        from tensorboard.compat.proto.summary_pb2 import Summary

        clip = _clips(rows)
        picture = Summary.Image(
            height=clip.shape[2],
            width=clip.shape[3],
            colorspace=3,
            encoded_image_string=animation(to_bytes(clip), medium.rate, "GIF"),
        )
        writer.file_writer.add_summary(Summary(value=[Summary.Value(tag="clips", image=picture)]), step)
    elif isinstance(medium, Audio):
        for name, row in zip(names, rows, strict=True):
            writer.add_audio(f"samples/{name}", row[0].mean(dim=0, keepdim=True), step, sample_rate=medium.rate)


def _for_wandb(
    wandb: Any, folder: Path, names: Sequence[str], grid: Tensor, rows: Sequence[Tensor], medium: Medium
) -> dict[str, Any]:
    logged = {"samples": wandb.Image(to_pil(grid))}
    if isinstance(medium, Video):
        gif = io.BytesIO(animation(to_bytes(_clips(rows)), medium.rate, "GIF"))
        logged["clips"] = wandb.Video(gif, format="gif", caption=", ".join(names))
    elif isinstance(medium, Audio):
        for number, (name, row) in enumerate(zip(names, rows, strict=True)):
            (file,) = medium.save(row[:1], folder / f"{number}.wav")
            logged[f"samples/{name}"] = wandb.Audio(str(file), caption=name)
    return logged


def _clips(rows: Sequence[Tensor]) -> Tensor:
    """All clips as one, a line for each row."""
    return tile(torch.cat(list(rows)), len(rows[0]))
