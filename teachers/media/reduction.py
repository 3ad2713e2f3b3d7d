"""Smaller samples, for previews and reports."""

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from teachers.media.image import Image
from teachers.media.medium import Medium
from teachers.media.video import Video


def reduced(samples: Tensor, medium: Medium, side: int) -> tuple[Tensor, Medium]:
    """Images or clips whose longer side has at most `side` pixels; smaller ones and sounds are unchanged.

    Args:
        samples: Samples (B, *medium.shape) in the judged range; images may have another size.
        medium: Their medium.
        side: Pixels.

    Returns:
        The samples, and their medium.
    """
    scale = side / max(samples.shape[-2:])
    if scale >= 1 or not isinstance(medium, Image | Video):
        return samples, medium
    frames = samples.transpose(1, 2).flatten(0, 1) if isinstance(medium, Video) else samples
    small = F.interpolate(frames, scale_factor=scale, mode="bilinear", antialias=True).clamp(0, 1)
    height, width = small.shape[-2:]
    if isinstance(medium, Video):
        small = small.unflatten(0, (len(samples), -1)).transpose(1, 2)
    return small, replace(medium, height=height, width=width)
