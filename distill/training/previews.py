"""Previews of samples during training: a picture of a still of each, and for clips and sounds files that play."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from teachers.media import Medium, Video
from teachers.media.reduction import reduced
from teachers.support.files import atomic_write

COLUMNS = 8  # samples in a row of the grid
CLIP_COLUMNS = 4  # of clips, whose stills are filmstrips
WIDEST = 512  # pixels of a filmstrip
LARGEST_CLIP = 192  # pixels of a clip's longer side in previews


def columns(medium: Medium) -> int:
    """Samples in a row of the grid."""
    return CLIP_COLUMNS if isinstance(medium, Video) else COLUMNS


def preview(samples: Tensor, medium: Medium) -> Tensor:
    """Samples (B, *medium.shape) as previews show them: clips are reduced, so that hundreds of frames stay small."""
    return reduced(samples, medium, LARGEST_CLIP)[0] if isinstance(medium, Video) else samples


def still_grid(rows: Sequence[Tensor], medium: Medium) -> Tensor:
    """One still of each sample.

    Args:
        rows: Samples (B, ...) of each row from `preview`, equally many.
        medium: Their medium.

    Returns:
        A picture (3, H, W) in [0, 1].
    """
    stills = [[_narrow(medium.still(sample)) for sample in row] for row in rows]
    return torch.cat([torch.cat(row, dim=2) for row in stills], dim=1).clamp(0, 1)


def _narrow(still: Tensor) -> Tensor:
    scale = WIDEST / still.shape[2]
    if scale >= 1 or still.shape[2] <= still.shape[1]:
        return still
    return F.interpolate(still[None], scale_factor=scale, mode="bilinear", antialias=True)[0]


def write_previews(
    folder: Path, step: int, names: Sequence[str], grid: Tensor, rows: Sequence[Tensor], medium: Medium
) -> None:
    """Write the grid of stills as STEP.png, and clips as STEP.webp or sounds as STEP-NUMBER.wav beside it.

    Args:
        folder: The folder, which is created.
        step: The training step.
        names: The names of the rows, for rows.json.
        grid: The result of `still_grid`.
        rows: Its samples.
        medium: Their medium.
    """
    path = folder / f"{step:08d}.png"
    scale = max(1, math.ceil(64 / (grid.shape[1] // len(rows))))
    array = (grid * 255).round().byte().permute(1, 2, 0).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        Image.fromarray(array.numpy()).save(temporary, format="PNG")
    with atomic_write(path.parent / "rows.json") as temporary:
        temporary.write_text(json.dumps(list(names)), encoding="utf-8")
    if medium.name != "image":
        ending = ".webp" if isinstance(medium, Video) else medium.save_endings[0]
        medium.save(torch.cat(list(rows)), path.with_suffix(ending), len(rows[0]))
