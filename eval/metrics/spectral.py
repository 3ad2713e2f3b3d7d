"""Faithfulness of sounds: the log-spectral distance to the teacher's sounds from the same noise and prompts.

    LSD = mean over time of sqrt(mean over bands of (10 log10 P - 10 log10 Q)^2)

P and Q are the powers of 64 mel bands, at least -80 dB of full scale. Source of the distance, there over frequencies:
Gray and Markel, "Distance measures for speech processing" (IEEE TASSP 24, 1976).
"""

import torch
from torch import Tensor

from eval.metrics.base import Figure, Metric
from eval.metrics.context import Row
from teachers.media import Audio
from teachers.media.spectrogram import RANGE, log_bands, power, window_length

BANDS = 64


def band_levels(sounds: Tensor, rate: int) -> Tensor:
    """Levels (B, channels, BANDS, columns) in dB of full scale, at least -80, of sounds (B, channels, samples)."""
    powers = power(sounds, rate, window_length(rate) // 4)
    bands = log_bands(BANDS, powers.shape[-2], rate).to(powers) @ powers
    return 10 * bands.clamp(min=10 ** (-RANGE / 10)).log10()


def log_spectral_distance(one: Tensor, two: Tensor, rate: int) -> Tensor:
    """The distances (B,) in dB of two batches of sounds (B, channels, samples) in [-1, 1]."""
    squares = (band_levels(one, rate) - band_levels(two, rate)).square()
    return squares.mean(dim=2).sqrt().flatten(1).mean(dim=1)


class SpectralDistanceToTeacher(Metric):
    """Mean log-spectral distance to the teacher's sounds."""

    key = "spectral_distance_to_teacher"
    heading = "Spectral distance to teacher (dB)"
    help = (
        "Lower is more faithful. Mean log-spectral distance to the teacher's sounds from the same noise and prompts "
        "(first samples)."
    )
    higher_is_better = False
    media = frozenset({"audio"})
    needs = frozenset({"images", "teacher_images"})
    format = ".2f"
    position = 52
    summary = False

    def compute(self, row: Row) -> Figure | None:
        """The mean, without an interval."""
        medium = self.context.medium
        if row.teacher_images is None or not isinstance(medium, Audio):
            return None
        count = min(len(row.images), len(row.teacher_images))
        with torch.no_grad():
            distances = log_spectral_distance(row.images[:count], row.teacher_images[:count], medium.rate)
        return Figure(distances.double().mean().item())
