"""Temporal metrics of clips: change, flicker, LPIPS and CLIP score of frames."""

import math

import pytest
import torch

from eval.features.extractors import extractor
from eval.metrics.context import MetricContext, Reference, Row
from eval.metrics.temporal import (
    ChangeToTeacher,
    Flicker,
    FrameChange,
    FrameLpips,
    clip_score_of_frames,
    flicker,
    frame_change,
    frame_distances,
    some_frames,
)


def brightening(frames: int = 5, step: float = 0.1) -> torch.Tensor:
    """A clip that becomes lighter by `step` with every frame."""
    return (step * torch.arange(frames).float())[None, None, :, None, None].expand(1, 3, frames, 4, 4)


def flickering(frames: int = 5, step: float = 0.1) -> torch.Tensor:
    """A clip that is lighter in every second frame."""
    return (step * (torch.arange(frames) % 2).float())[None, None, :, None, None].expand(1, 3, frames, 4, 4)


def test_a_steady_change_is_no_flicker():
    assert frame_change(brightening()).tolist() == pytest.approx([0.1])
    assert flicker(brightening()).tolist() == pytest.approx([0], abs=1e-6)
    assert frame_change(flickering()).tolist() == pytest.approx([0.1])
    assert flicker(flickering()).tolist() == pytest.approx([0.1])


@pytest.mark.parametrize("frames", [1, 2])
def test_short_clips_have_no_flicker(frames):
    assert flicker(flickering(frames)).tolist() == [0]
    assert frame_change(flickering(frames)).tolist() == pytest.approx([0.1 * (frames - 1)])


def mean_difference(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    return (one - two).abs().flatten(1).mean(dim=1)


def test_distances_of_frames_belong_to_their_clip():
    clips = torch.cat([brightening(), flickering(step=0.3), torch.zeros(1, 3, 5, 4, 4)])
    assert frame_distances(clips, mean_difference).tolist() == pytest.approx([0.1, 0.3, 0], abs=1e-6)


def test_frames_for_clip_are_even_and_few():
    clips = brightening(frames=81, step=0.01)
    assert some_frames(clips)[0, :, 0, 0, 0].tolist() == pytest.approx([0, 0.11, 0.23, 0.34, 0.46, 0.57, 0.69, 0.8])
    assert torch.equal(some_frames(clips[:, :, :3]), clips[:, :, :3].transpose(1, 2))


def test_the_clip_score_of_a_clip_is_the_mean_of_its_frames():
    clips = torch.rand(2, 3, 9, 4, 4)

    def model(images, prompts):
        assert prompts == ["a"] * 8 + ["b"] * 8
        return images.flatten(1).mean(dim=1)

    expected = some_frames(clips).flatten(2).mean(dim=2).mean(dim=1)
    torch.testing.assert_close(clip_score_of_frames(model, clips, ["a", "b"]), expected)


def context(**changes) -> MetricContext:
    return MetricContext(4, 0, torch.device("cpu"), extractor("pixels"), 192, **changes)


def row(images, scores=None, teacher_images=None) -> Row:
    mean, covariance = torch.zeros(2).double(), torch.eye(2).double()
    return Row(torch.zeros(4, 2), mean, covariance, images, scores or {}, Reference(mean, covariance), teacher_images)


@pytest.mark.parametrize(("metric", "expected"), [(FrameChange, 0.1), (Flicker, 0.05)])
def test_metrics_are_means_with_intervals(metric, expected):
    made = metric(context())
    scores = made.score(torch.cat([brightening(), flickering()]), None)
    figure = made.compute(row(brightening(), {made.key: scores}))
    assert figure.value == pytest.approx(expected, abs=1e-6)
    assert figure.interval[0] <= figure.value <= figure.interval[1]
    assert made.ratio_key.endswith("_ratio")


def test_lpips_of_frames():
    made = FrameLpips(context(lpips=mean_difference))
    assert made.score(brightening(), None).tolist() == pytest.approx([0.1])
    assert made.score(brightening(frames=1), None).isnan().all()
    assert FrameLpips.needs <= context(lpips=mean_difference).available()
    assert not FrameLpips.needs <= context().available()


def test_the_motion_error_is_relative_to_the_teachers_motion():
    made = ChangeToTeacher(context())
    assert made.compute(row(brightening())) is None
    assert made.compute(row(brightening(), teacher_images=brightening())).value == 0
    assert made.compute(row(brightening() + 0.2, teacher_images=brightening())).value == pytest.approx(0, abs=1e-6)
    assert made.compute(row(0 * brightening(), teacher_images=brightening())).value == pytest.approx(1)
    assert made.compute(row(brightening(), teacher_images=0 * brightening())) is None
    assert not math.isnan(made.compute(row(flickering(), teacher_images=brightening())).value)
