"""Source images for comparisons of pipelines with our own sampler, without data."""

import torch
from torch import Tensor

from distill.exporting.recording import SAMPLES
from teachers.core.teacher import Teacher


def probe_sources(teacher: Teacher) -> Tensor | None:
    """`SAMPLES` smooth random source images (SAMPLES, *teacher.source_shape), each with another rectangle as its mask.

    None for teachers without source images.
    """
    channels, height, width = teacher.source_shape
    if not channels:
        return None
    coarse = torch.rand(SAMPLES, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sources = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").clamp(-1, 1)
    if channels == 3:
        return sources
    mask = torch.zeros(SAMPLES, 1, height, width)
    for row in range(SAMPLES):
        mask[row, :, height // 4 :, : width // (2 + row)] = 1
    return torch.cat([sources, mask], dim=1)
