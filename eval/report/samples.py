"""Samples in a report: stills in grid.png; thumbnails, clips that loop, or sounds with players in the page."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from eval.report.gallery import sample_file
from eval.report.grid import CELL, PIXEL_RATIO, magnification, thumbnail
from teachers.media import Audio, Medium, Video
from teachers.media.pictures import tile
from teachers.media.reduction import reduced

SHOWN = 10  # samples of each row in grid.png and at once in the page
CLIP_STILL = 4  # frames of a clip in grid.png, in two rows
PICTURE_BYTES = SOUND_BYTES = 2**21  # of all pictures, or all sounds, in a page: with them it has less than 5 MB
SAMPLE_BYTES = 2  # of a channel of a .wav file
# Pixels of the longer side and WebP quality of thumbnails, or None for lossless ones that are not reduced; the first
# whose thumbnails fit PICTURE_BYTES are used.
QUALITIES = ((CELL, None), (CELL, 85), (CELL, 60), (128, 50), (96, 40), (64, 30), (32, 20))


@dataclass(frozen=True)
class Shown:
    """The samples of a report.

    Attributes:
        samples: For each row, its first samples (K, *medium.shape) in the judged range, reduced.
        medium: Their medium.
    """

    samples: Sequence[Tensor]
    medium: Medium

    def stills(self) -> list[list[Tensor]]:
        """A picture (3, H, W) in [0, 1] of each of the first samples."""
        return [[_still(sample, self.medium) for sample in row[:SHOWN]] for row in self.samples]


@dataclass(frozen=True)
class SampleView:
    """A sample in the page.

    Attributes:
        uri: A picture or an animation as a data URI.
        width: Its width on the page in CSS pixels.
        height: Its height on the page in CSS pixels.
        pixelated: Whether it is magnified.
        file: The sample at its own size, relative to the page, or None.
        sound: A sound: a data URI or a file relative to the page; None for pictures.
        seed: The seed of its initial noise, or None if the report does not know it.
    """

    uri: str
    width: int
    height: int
    pixelated: bool
    file: str | None = None
    sound: str | None = None
    seed: int | None = None


def shown(samples: Sequence[Tensor], medium: Medium, side: int = CELL) -> Shown:
    """The samples of a report, reduced to what it shows.

    Args:
        samples: For each row, its first samples in the judged range.
        medium: Their medium.
        side: Pixels of the longer side; larger images and clips are reduced.
    """
    small = [reduced(row, medium, side) for row in samples]
    return Shown([row for row, _ in small], small[0][1])


def views(
    samples: Sequence[Tensor], medium: Medium, gallery: Mapping[str, Any] | None = None
) -> tuple[list[list[SampleView]], float | None]:
    """The samples of all rows in the page.

    Args:
        samples: For each row, its first samples in the judged range.
        medium: Their medium.
        gallery: The `gallery` of report.json, or None if there are no files beside the page.

    Returns:
        For each row its samples, and the seconds of a sound that the page plays; None if it plays all of it.
    """
    found = _thumbnails(samples, medium)
    played = _played(samples, medium)
    for row, line in enumerate(found):
        for number in range(len(line)):
            if gallery is not None:
                seed = gallery["samples"][number]["latents_seed"]
                line[number] = replace(line[number], file=sample_file(gallery, row, number), seed=seed)
            if isinstance(medium, Audio):
                beside = line[number].file if played else None
                sound = beside or _sound(samples[row][number], medium, played)
                line[number] = replace(line[number], sound=sound)
    return found, None if gallery is not None else played


def _thumbnails(samples: Sequence[Tensor], medium: Medium) -> list[list[SampleView]]:
    """A picture of each sample, of the best of `QUALITIES` that fits."""
    found: list[list[SampleView]] = []
    for side, quality in QUALITIES:
        if quality is None and not isinstance(medium, Audio) and max(samples[0].shape[-2:]) > side:
            continue  # a reduced picture is not lossless anyway
        kept = shown(samples, medium, side)
        found = [_row(row, kept.medium, side, quality) for row in kept.samples]
        if sum(len(view.uri) for line in found for view in line) <= PICTURE_BYTES * 4 / 3:
            break
    return found


def _row(row: Tensor, medium: Medium, side: int, quality: int | None) -> list[SampleView]:
    if isinstance(medium, Video):
        return [_clip(playable) for playable in medium.playable(row)]
    return [_picture(medium.still(sample), side, quality) for sample in row]


def _sound(sample: Tensor, medium: Audio, played: float | None) -> str:
    end = None if played is None else max(1, int(played * medium.rate))
    return _uri(medium.playable(sample[None, :, :end])[0])


def _played(samples: Sequence[Tensor], medium: Medium) -> float | None:
    """Seconds of each sound that fit into the page together; None if whole sounds fit, and for other media."""
    if not isinstance(medium, Audio):
        return None
    count = sum(map(len, samples))
    longest = SOUND_BYTES / (count * medium.channels * SAMPLE_BYTES * medium.rate)
    return longest if longest < medium.seconds else None


def _picture(image: Tensor, side: int, quality: int | None) -> SampleView:
    small, stream = thumbnail(image, side), io.BytesIO()
    kind = "png" if quality is None else "webp"
    small.save(stream, format=kind, **({"optimize": True} if quality is None else {"quality": quality, "method": 4}))
    uri = f"data:image/{kind};base64," + base64.b64encode(stream.getvalue()).decode()
    return SampleView(uri, *_size(small.size))


def _clip(playable: Any) -> SampleView:
    return SampleView(_uri(playable), *_size((playable.width, playable.height)))


def _size(size: tuple[int, int]) -> tuple[int, int, bool]:
    """Width and height in CSS pixels: of a small picture a whole multiple, so that it is not blurred."""
    factor = magnification(Image.new("1", size))
    if factor == 1:
        width, height = (round(pixels * CELL / max(size)) // PIXEL_RATIO for pixels in size)
        return width, height, False
    width, height = (pixels * factor // PIXEL_RATIO for pixels in size)
    return width, height, True


def _uri(playable: Any) -> str:
    return f"data:{playable.mime};base64," + base64.b64encode(playable.data).decode()


def _still(sample: Tensor, medium: Medium) -> Tensor:
    if not isinstance(medium, Video):
        return medium.still(sample)
    times = torch.linspace(0, medium.frames - 1, min(CLIP_STILL, medium.frames)).round().long()
    return tile(sample[:, times].transpose(0, 1), 2)
