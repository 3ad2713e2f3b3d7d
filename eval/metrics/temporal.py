"""Temporal consistency of clips: how much they change from frame to frame, and how much of that is flicker.

    change  = mean |x_{f+1} - x_f|
    flicker = mean |x_f - (x_{f-1} + x_{f+1}) / 2|

A uniform motion changes every frame but deviates little from the mean of its neighbours; flicker deviates as much as it
changes. Neither is good or bad by itself: a frozen clip has no flicker. Both are read against the teacher's.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eval.metrics.base import Figure, Metric, SampleMetric
from eval.metrics.clip_score import ClipModel, ClipScore
from eval.metrics.context import Distance, Row

CLIP_FRAMES = 8  # frames of a clip that CLIP scores, at most


def frame_change(clips: Tensor) -> Tensor:
    """Mean absolute difference of successive frames (B,) of clips (B, 3, F, H, W) in [0, 1]; 0 for one frame."""
    changes = clips.diff(dim=2).abs().flatten(1)
    return changes.mean(dim=1) if changes.shape[1] else clips.new_zeros(len(clips))


def flicker(clips: Tensor) -> Tensor:
    """Mean absolute deviation (B,) of each frame from the mean of its neighbours; 0 for fewer than three frames."""
    if clips.shape[2] < 3:
        return clips.new_zeros(len(clips))
    middle = (clips[:, :, :-2] + clips[:, :, 2:]) / 2
    return (clips[:, :, 1:-1] - middle).abs().flatten(1).mean(dim=1)


def frame_distances(clips: Tensor, distance: Distance) -> Tensor:
    """Mean distance of successive frames (B,).

    Args:
        clips: Clips (B, 3, F, H, W) in [0, 1] with at least two frames.
        distance: The distance of two batches of images (B, 3, H, W), such as LPIPS.
    """
    first, second = (frames.transpose(1, 2).flatten(0, 1) for frames in (clips[:, :, :-1], clips[:, :, 1:]))
    distances: Tensor = distance(first, second)
    return distances.reshape(len(clips), -1).mean(dim=1)


def some_frames(clips: Tensor, most: int = CLIP_FRAMES) -> Tensor:
    """At most `most` frames (B, n, 3, H, W) of clips (B, 3, F, H, W), evenly from the first to the last."""
    count = clips.shape[2]
    chosen = torch.linspace(0, count - 1, min(most, count)).round().long()
    return clips[:, :, chosen].transpose(1, 2)


class FrameChange(SampleMetric):
    """Mean absolute difference of successive frames."""

    key = "frame_change"
    media = frozenset({"video"})
    heading = "Change per frame"
    help = "Mean absolute difference of successive frames, and its 95% interval; compare it with the teacher's."
    higher_is_better = None
    needs = frozenset({"images"})
    position = 80
    summary = False
    lowest = 0.0
    ratio_key = "frame_change_ratio"

    def score(self, images: Tensor, prompts: Sequence[str] | None) -> Tensor:
        """The change of each clip."""
        return frame_change(images)


class Flicker(SampleMetric):
    """Mean absolute deviation of frames from the mean of their neighbours."""

    key = "flicker"
    media = frozenset({"video"})
    heading = "Flicker"
    help = (
        "Mean absolute deviation of each frame from the mean of its neighbours, and its 95% interval. Above the "
        "teacher's: flicker; far below it: little motion."
    )
    higher_is_better = None
    needs = frozenset({"images"})
    position = 81
    lowest = 0.0
    ratio_key = "flicker_ratio"

    def score(self, images: Tensor, prompts: Sequence[str] | None) -> Tensor:
        """The flicker of each clip."""
        return flicker(images)


class FrameLpips(SampleMetric):
    """Mean LPIPS of successive frames."""

    key = "frame_lpips"
    media = frozenset({"video"})
    heading = "LPIPS per frame"
    help = "Mean LPIPS between successive frames, and its 95% interval; compare it with the teacher's."
    higher_is_better = None
    needs = frozenset({"images", "lpips"})
    format = ".3f"
    position = 82
    summary = False
    lowest = 0.0
    ratio_key = "frame_lpips_ratio"

    def score(self, images: Tensor, prompts: Sequence[str] | None) -> Tensor:
        """The mean distance of each clip; NaN for clips of one frame."""
        assert self.context.lpips is not None
        if images.shape[2] < 2:
            return images.new_full((len(images),), math.nan)
        return frame_distances(images, self.context.lpips).cpu()

    def cache_key(self) -> list[Any]:
        """The scores depend on the weights of LPIPS."""
        return [*super().cache_key(), getattr(self.context.lpips, "weights", None)]


class FrameClipScore(ClipScore):
    """Mean CLIP score of the frames of all clips."""

    key = "frame_clip_score"
    media = frozenset({"video"})
    interval_key, best_key = "frame_clip_interval", "frame_clip_best"
    help = (
        "Higher is better. 100 max(cos, 0) of CLIP's embeddings of frame and prompt: the mean over at most "
        f"{CLIP_FRAMES} frames of each clip, and its 95% interval. It does not see motion."
    )

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.heading = f"{self.model.name}-frames@{context.samples}"

    def prompt_score(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """The mean over the frames of each clip."""
        return clip_score_of_frames(self.model, samples, prompts)


def clip_score_of_frames(model: ClipModel, clips: Tensor, prompts: Sequence[str]) -> Tensor:
    """The mean CLIP score (B,) of at most 8 frames of clips (B, 3, F, H, W) in [0, 1] with their B prompts."""
    frames = some_frames(clips)
    repeated = [prompt for prompt in prompts for _ in range(frames.shape[1])]
    scores: Tensor = model(frames.flatten(0, 1), repeated)
    return scores.reshape(len(clips), -1).mean(dim=1)


class ChangeToTeacher(Metric):
    """The difference of the row's changes over time and those of the teacher's clips from the same noise."""

    key = "change_to_teacher"
    media = frozenset({"video"})
    heading = "Motion error"
    help = (
        "Lower is more faithful. Mean absolute difference of the frame-to-frame changes and those of the teacher's "
        "clips from the same noise and prompts, relative to the teacher's (first samples)."
    )
    higher_is_better = False
    needs = frozenset({"images", "teacher_images"})
    format = ".3f"
    position = 83
    summary = False

    def compute(self, row: Row) -> Figure | None:
        """The ratio of the means, without an interval; None if the teacher's clips do not change."""
        if row.teacher_images is None:
            return None
        count = min(len(row.images), len(row.teacher_images))
        ours, theirs = (clips[:count].diff(dim=2) for clips in (row.images, row.teacher_images))
        change = theirs.abs().mean().item()
        return Figure((ours - theirs).abs().mean().item() / change) if change > 0 else None
