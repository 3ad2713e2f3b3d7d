"""Features of clips and sounds that need no weights. They are not comparable to FVD or FAD."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from teachers.media import Audio, Medium
from teachers.media.pictures import LUMA
from teachers.media.spectrogram import log_bands, power, window_length

FRAMES = 4
SIDE = 8  # pixels of a reduced frame
BANDS = 64
FLOOR = 1e-10  # -100 dB of full scale
DECIBELS_PER_UNIT = 20.0


def motion_features(clips: Tensor) -> Tensor:
    """What a clip shows at four times, and where and how much it changes between them.

    Args:
        clips: Clips (B, 3, F, H, W) in [0, 1].

    Returns:
        Features (B, 960): 8 x 8 pixels of 4 frames from the first to the last in RGB, then, for the three parts
        between these frames, 8 x 8 mean absolute differences of the brightness of successive frames.
    """
    frames = clips.shape[2]
    edges = torch.linspace(0, frames - 1, FRAMES).round().long().tolist()
    small = F.adaptive_avg_pool3d(clips[:, :, edges], (FRAMES, SIDE, SIDE))
    luma = (clips * torch.tensor(LUMA, device=clips.device)[:, None, None, None]).sum(dim=1)
    changes = F.adaptive_avg_pool2d(luma.diff(dim=1).abs(), SIDE)  # (B, F - 1, 8, 8)
    parts = [
        changes[:, first:last].mean(dim=1) if last > first else changes.new_zeros(len(clips), SIDE, SIDE)
        for first, last in itertools.pairwise(edges)
    ]
    return torch.cat([small.flatten(1), torch.stack(parts, dim=1).flatten(1)], dim=1)


def spectrum_features(sounds: Tensor, rate: int) -> Tensor:
    """The mean and the standard deviation over time of the level in 64 bands.

    Args:
        sounds: Sounds (B, channels, samples) in [-1, 1].
        rate: Samples per second.

    Returns:
        Features (B, 128) in units of 20 dB. The powers of channels are averaged.
    """
    powers = power(sounds, rate, window_length(rate) // 4).mean(dim=1)
    bands = log_bands(BANDS, powers.shape[1], rate).to(powers) @ powers
    level = bands.clamp(min=FLOOR).log10() * (10 / DECIBELS_PER_UNIT)
    return torch.cat([level.mean(dim=2), level.std(dim=2, correction=0)], dim=1)


def light_features(samples: Tensor, medium: Medium) -> Tensor:
    """`motion_features` of clips, or `spectrum_features` of sounds."""
    return spectrum_features(samples, medium.rate) if isinstance(medium, Audio) else motion_features(samples)
