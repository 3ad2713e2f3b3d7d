"""Samples of evaluations during training: batches and decoding."""

import math

from torch import Tensor

from teachers.core.teacher import Teacher
from teachers.media import Medium

CHUNK = 50  # samples of one batch
VALUES = 2**26  # of the clips or sounds of one batch, at most, unless a single one has more


def decode_samples(teacher: Teacher, latents: Tensor) -> Tensor:
    """Samples in the judged range from unit-variance latents (B, ...), as pipelines decode them."""
    return teacher.medium.judged(teacher.decode(latents))


def chunk_size(medium: Medium) -> int:
    """The number of samples in one batch. For images it is constant, because later random numbers depend on it."""
    return CHUNK if medium.name == "image" else min(CHUNK, max(1, VALUES // math.prod(medium.shape)))
