"""Samples as a report shows them: stills in grid.png; images, clips that loop, or sounds with players in the page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from eval.report.grid import PIXEL_RATIO, magnification, thumbnail
from teachers.media import Audio, Medium, Video
from teachers.media.pictures import tile
from teachers.media.reduction import reduced

SHOWN_SIZE = 192  # pixels; larger images and clips are shown smaller
CLIP_STILL = 4  # frames of a clip in grid.png, in two rows
SOUND_BYTES = 2**25  # of all sounds in a page together; of longer ones the beginning is played
SAMPLE_BYTES = 2  # of a channel of a .wav file


@dataclass(frozen=True)
class Shown:
    """The samples of a report.

    Attributes:
        samples: For each row, its first samples (K, *medium.shape) in the judged range.
        medium: Their medium.
        played: Seconds of a sound that the page plays; None if it plays all of it.
    """

    samples: Sequence[Tensor]
    medium: Medium
    played: float | None = None

    def stills(self) -> list[list[Tensor]]:
        """A picture (3, H, W) in [0, 1] of each sample."""
        return [[_still(sample, self.medium) for sample in row] for row in self.samples]


@dataclass(frozen=True)
class SampleView:
    """A sample in the page.

    Attributes:
        uri: A picture or an animation as a data URI.
        width: Its width on the page in CSS pixels.
        height: Its height on the page in CSS pixels.
        pixelated: Whether it is magnified.
        sound: A sound as a data URI, or None.
    """

    uri: str
    width: int
    height: int
    pixelated: bool
    sound: str | None = None


def shown(samples: Sequence[Tensor], medium: Medium) -> Shown:
    """The samples of a report, reduced to what it shows.

    Args:
        samples: For each row, its first samples in the judged range.
        medium: Their medium.
    """
    small = [reduced(row, medium, SHOWN_SIZE) for row in samples]
    played = None
    if isinstance(medium, Audio):
        count = sum(map(len, samples))
        longest = SOUND_BYTES / (count * medium.channels * SAMPLE_BYTES * medium.rate)
        played = longest if longest < medium.seconds else None
    return Shown([row for row, _ in small], small[0][1], played)


def views(row: Tensor, report: Shown) -> list[SampleView]:
    """The samples (K, ...) of one row in the page."""
    medium = report.medium
    if isinstance(medium, Video):
        return [_clip(playable) for playable in medium.playable(row)]
    if isinstance(medium, Audio):
        end = None if report.played is None else max(1, int(report.played * medium.rate))
        return [
            _picture(medium.still(sample), _uri(playable))
            for sample, playable in zip(row, medium.playable(row[:, :, :end]), strict=True)
        ]
    return [_picture(sample) for sample in row]


def _picture(image: Tensor, sound: str | None = None) -> SampleView:
    small, stream = thumbnail(image), io.BytesIO()
    small.save(stream, format="PNG", optimize=True)
    width, height, pixelated = _size(small.size, magnification(small))
    uri = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    return SampleView(uri, width, height, pixelated, sound)


def _clip(playable: Any) -> SampleView:
    size = (playable.width, playable.height)
    return SampleView(_uri(playable), *_size(size, magnification(Image.new("1", size))))


def _size(size: tuple[int, int], factor: int) -> tuple[int, int, bool]:
    width, height = (side * factor // PIXEL_RATIO for side in size)
    return width, height, factor > 1


def _uri(playable: Any) -> str:
    return f"data:{playable.mime};base64," + base64.b64encode(playable.data).decode()


def _still(sample: Tensor, medium: Medium) -> Tensor:
    if not isinstance(medium, Video):
        return medium.still(sample)
    times = torch.linspace(0, medium.frames - 1, min(CLIP_STILL, medium.frames)).round().long()
    return tile(sample[:, times].transpose(0, 1), 2)
