"""The log-spectral distance of sounds."""

import math

import pytest
import torch

from eval.metrics.spectral import band_levels, log_spectral_distance

RATE = 8000
TIME = torch.arange(RATE) / RATE
SINE = torch.sin(2 * math.pi * 440 * TIME)[None, None]


def test_equal_sounds_have_no_distance_and_phase_does_not_count():
    shifted = torch.sin(2 * math.pi * 440 * TIME + 1)[None, None]
    assert log_spectral_distance(SINE, SINE, RATE).item() == 0
    assert log_spectral_distance(SINE, shifted, RATE).item() < 1
    other = torch.sin(2 * math.pi * 660 * TIME)[None, None]
    assert log_spectral_distance(SINE, other, RATE).item() > 10


def test_a_gain_is_its_decibels_where_all_bands_are_heard():
    noise = torch.rand(2, 2, RATE, generator=torch.Generator().manual_seed(0)) - 0.5
    assert log_spectral_distance(noise, noise / 2, RATE).tolist() == pytest.approx([6.02, 6.02], abs=0.01)


def test_silence_is_at_the_floor():
    assert torch.equal(band_levels(torch.zeros(1, 1, RATE), RATE).unique(), torch.tensor([-80.0]))
    assert log_spectral_distance(torch.zeros_like(SINE), 1e-6 * SINE, RATE).item() == 0
