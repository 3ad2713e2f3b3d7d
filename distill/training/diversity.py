"""How much samples vary with the noise: the measure that detects a collapse to one or a few images."""

import math

import torch
from torch import Tensor

from eval.features.light_features import light_features
from teachers.media import Medium

SAMPLES = 64  # samples from which the diversity is measured
NOISES = 16  # of them for each prompt


def compared(samples: Tensor, medium: Medium) -> Tensor:
    """What is compared of samples (B, ...): the pixels of images, and light features (B, D) of clips and sounds.

    Sounds with another phase are heard as the same, and clips at full size would not fit into memory.
    """
    return samples if medium.name == "image" else light_features(samples, medium)


def variation(images: Tensor) -> Tensor:
    """How much images differ within groups of up to `NOISES` consecutive ones.

    Args:
        images: Images (N, ...).

    Returns:
        (2,): the mean over groups of their variance, and of their median squared distance from an image to its nearest
        neighbour. The second is small where samples are copies of a few images, whose variance may be large.
    """
    groups = images.double().flatten(1).split(NOISES)
    variances = [group.var(0, correction=0).mean() for group in groups]
    nearest = []
    for group in groups:
        distances = torch.cdist(group, group, compute_mode="donot_use_mm_for_euclid_dist").square() / group.shape[1]
        nearest.append(distances.fill_diagonal_(math.inf).amin(1).median())
    return torch.stack([torch.stack(variances).mean(), torch.stack(nearest).mean()])


def relative_variation(values: Tensor, target: Tensor) -> float:
    """The smaller ratio of two results of `variation`; 0 if one is not finite, 1 where the teacher does not vary."""
    ratios = torch.where(target > 1e-12, values / target.clamp_min(1e-12), 1.0)
    return float(ratios.min()) if bool(ratios.isfinite().all()) else 0.0
