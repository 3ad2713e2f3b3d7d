"""Judges by arithmetic: motion by image moments, pitch by harmonic sum."""

import math

import pytest
import torch
import torch.nn.functional as F

from teachers.media.motion import MOTIONS, motion, motion_labels
from teachers.media.pitch import pitch


def moving_shape(
    label: int, size: int = 32, frames: int = 9, background: float = 0.0, level: float = 1.0
) -> torch.Tensor:
    """An L-shaped object with one motion of MOTIONS, (1, 3, F, size, size)."""
    picture = torch.full((1, 1, size, size), 0.0)
    third = size // 3
    picture[:, :, third : 2 * third + 2, third : third + 3] = 1
    picture[:, :, 2 * third : 2 * third + 3, third : 2 * third + 4] = 1
    clip = []
    for time in torch.linspace(-1, 1, frames).tolist():
        shift = 0.3 * time
        angle = 0.8 * time * {4: -1, 5: 1}.get(label, 0)
        zoom = math.exp(0.3 * time * {6: 1, 7: -1}.get(label, 0))
        x = shift * {0: -1, 1: 1}.get(label, 0)
        y = shift * {2: -1, 3: 1}.get(label, 0)
        c, s = math.cos(angle) / zoom, math.sin(angle) / zoom
        matrix = torch.tensor([[[c, s, -(c * x + s * y)], [-s, c, s * x - c * y]]])
        grid = F.affine_grid(matrix, (1, 1, size, size), align_corners=False)
        clip.append(F.grid_sample(picture, grid, align_corners=False)[0, 0])
    return (background + (level - background) * torch.stack(clip)).expand(1, 3, frames, size, size)


@pytest.mark.parametrize("label", range(len(MOTIONS)))
@pytest.mark.parametrize(("background", "level"), [(0.0, 1.0), (1.0, 0.2), (0.5, 0.9)])
def test_each_motion_is_recognized_on_dark_and_light_backgrounds(label, background, level):
    assert motion_labels(moving_shape(label, background=background, level=level)).tolist() == [label]


@pytest.mark.parametrize("label", range(len(MOTIONS)))
def test_backwards_is_the_opposite_motion(label):
    assert motion_labels(moving_shape(label).flip(2)).tolist() == [label ^ 1]


@pytest.mark.parametrize(("size", "frames"), [(16, 5), (64, 25), (48, 2)])
def test_other_sizes_and_numbers_of_frames(size, frames):
    shapes = torch.cat([moving_shape(label, size, frames) for label in range(4)])
    assert motion_labels(shapes).tolist() == [0, 1, 2, 3]


def test_motions_are_measured():
    right, turning, growing = (motion(moving_shape(label)) for label in (1, 5, 6))
    assert right.right.item() == pytest.approx(0.6, abs=0.02)
    assert right.down.item() == pytest.approx(0, abs=0.01)
    assert turning.clockwise.item() == pytest.approx(1.6, abs=0.1)
    assert growing.growth.item() == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("clip", [torch.zeros(1, 3, 9, 32, 32), moving_shape(0)[:, :, :1].expand(-1, -1, 9, -1, -1)])
def test_clips_without_motion_have_none(clip):
    assert motion_labels(clip).tolist() == [-1]


def test_little_noise_does_not_change_the_motion():
    clean = torch.cat([moving_shape(label) for label in range(8)])
    noisy = clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert motion_labels(noisy.clamp(0, 1)).tolist() == list(range(8))


def note(key: float, rate: int = 8000, seconds: float = 1.0, harmonics: int = 6, decay: float = 0.6) -> torch.Tensor:
    """A decaying note with harmonics, (1, 1, samples)."""
    time = torch.arange(int(rate * seconds)).double() / rate
    frequency = 440 * 2 ** ((key - 69) / 12)
    partials = [
        decay**k * torch.sin(2 * math.pi * frequency * k * time)
        for k in range(1, harmonics + 1)
        if frequency * k < rate / 2
    ]
    return (sum(partials) * torch.exp(-2 * time) * 0.3).float()[None, None]


@pytest.mark.parametrize("key", [48, 55, 60, 64, 71])
@pytest.mark.parametrize("harmonics", [1, 3, 8])
@pytest.mark.first_is_quick
def test_notes_are_recognized(key, harmonics):
    assert pitch(note(key, harmonics=harmonics), 8000, 48, 24).tolist() == [key]


@pytest.mark.parametrize("cents", [-35, 35])
def test_notes_may_be_out_of_tune(cents):
    keys = range(48, 72)
    notes = torch.cat([note(key + cents / 100) for key in keys])
    assert pitch(notes, 8000, 48, 24).tolist() == list(keys)


@pytest.mark.parametrize(("rate", "seconds"), [(4000, 1.0), (16000, 0.5), (44100, 0.25)])
def test_other_rates_and_durations(rate, seconds):
    assert pitch(note(57, rate, seconds), rate, 48, 24).tolist() == [57]


def test_a_note_without_its_fundamental_is_recognized():
    missing = note(52) - note(52, harmonics=1)
    assert pitch(missing, 8000, 48, 24).tolist() == [52]


def test_channels_and_loudness_do_not_matter():
    stereo = torch.cat([note(60), 0.5 * note(60)], dim=1)
    assert pitch(stereo * 0.01, 8000, 48, 24).tolist() == [60]


def test_silence_has_no_pitch():
    assert pitch(torch.zeros(2, 1, 8000), 8000, 48, 24).tolist() == [-1, -1]
