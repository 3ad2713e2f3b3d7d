"""Clips and sounds in TensorBoard and Weights & Biases, where they play; stills go through `trackers.log_image`."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teachers.media import Audio, Image, Medium, Video
from teachers.media.pictures import tile, to_bytes
from teachers.media.video_writing import animation


def log_media(
    trackers: Sequence[Any], tag: str, rows: Mapping[str, Tensor], step: int, medium: Medium, wandb: Any = None
) -> None:
    """Log clips or sounds to the trackers that play them; do nothing for images and for other trackers.

    All clips are logged as one, with a line for each row; of each row of sounds, the first one.

    Args:
        trackers: accelerate's trackers.
        tag: The name of the samples; slashes group names.
        rows: Samples (B, ...) by row, equally many. Clips may be smaller than those of `medium`.
        step: The training step.
        medium: Their medium.
        wandb: The package wandb; None: it is imported if a tracker needs it.
    """
    if isinstance(medium, Image):
        return
    for tracker in trackers:
        if tracker.name == "tensorboard":
            _to_tensorboard(tracker.writer, tag, rows, step, medium)
        elif tracker.name == "wandb":
            with tempfile.TemporaryDirectory() as folder:  # wandb reads the files while it logs them
                package = import_module("wandb") if wandb is None else wandb
                tracker.log(_for_wandb(package, Path(folder), tag, rows, medium), step=step)


def _to_tensorboard(writer: Any, tag: str, rows: Mapping[str, Tensor], step: int, medium: Medium) -> None:
    if isinstance(medium, Video):
        from tensorboard.compat.proto.summary_pb2 import Summary

        clip = _clips(rows)
        picture = Summary.Image(
            height=clip.shape[2],
            width=clip.shape[3],
            colorspace=3,
            encoded_image_string=animation(to_bytes(clip), medium.rate, "GIF"),
        )
        writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=f"{tag}/clips", image=picture)]), step)
    elif isinstance(medium, Audio):
        for name, row in rows.items():
            writer.add_audio(f"{tag}/{name}", row[0].mean(dim=0, keepdim=True), step, sample_rate=medium.rate)


def _for_wandb(wandb: Any, folder: Path, tag: str, rows: Mapping[str, Tensor], medium: Medium) -> dict[str, Any]:
    if isinstance(medium, Video):
        gif = io.BytesIO(animation(to_bytes(_clips(rows)), medium.rate, "GIF"))
        return {f"{tag}/clips": wandb.Video(gif, format="gif", caption=", ".join(rows))}
    logged = {}
    for number, (name, row) in enumerate(rows.items()):
        (file,) = medium.save(row[:1], folder / f"{number}.wav")
        logged[f"{tag}/{name}"] = wandb.Audio(str(file), caption=name)
    return logged


def _clips(rows: Mapping[str, Tensor]) -> Tensor:
    """All clips as one, a line for each row."""
    return tile(torch.cat(list(rows.values())), len(next(iter(rows.values()))))
