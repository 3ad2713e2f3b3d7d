"""The only reader of clips: animated WebP and GIF by Pillow, MP4, WebM, MOV, Matroska and AVI by the package av.

What is read of a file is what a player shows: upright, with the shape of its pixels applied, composited on white.

| | what is read |
| --- | --- |
| frame rate | for each frame of the sample the nearest frame by its timestamp, so variable rates keep their speed |
| animated WebP and GIF | a frame for as long as it is shown, because equal frames are merged |
| longer | the beginning |
| shorter | refused |
| size | scaled to cover the sample and cropped to its centre, as images |
| high dynamic range | refused |
| sound | ignored |

Only the frames up to the end of the sample are decoded, and only the chosen ones are kept, at the sample's size.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from teachers.media.file_problems import Refused, problem
from teachers.media.pictures import TRANSPARENT, fit
from teachers.media.video_decoding import Shown, open_clip
from teachers.support.images import MAX_ASPECT
from teachers.support.text import printable

VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".webp", ".gif")
MAX_FRAMES = 2**16  # that are decoded of one file
LATE = 0.25  # of the time between two frames, by which an unchanged frame rate may be wrong
CLOSE = 0.1  # of the time between two frames, to which files round the end of a clip


def read_clip(
    source: Path | bytes, name: str, frames: int, height: int, width: int, rate: float
) -> tuple[Tensor, tuple[str, ...]]:
    """Read the beginning of a clip.

    Args:
        source: A file, or the contents of one.
        name: Its name in messages.
        frames: Frames of the result.
        height: Height of the result in pixels.
        width: Width of the result in pixels.
        rate: Frames per second of the result.

    Returns:
        The clip (3, frames, height, width) of bytes, and what was converted, as in `Reading.notes`.

    Raises:
        ValueError: If the file is damaged, no clip, too short, too large, or too thin; the message names it.
    """
    try:
        with open_clip(source) as shown:
            selection = _Selection(frames, height, width, rate)
            selection.read(shown)
            return torch.stack(selection.chosen, dim=1), selection.notes()
    except Exception as error:  # decoders raise many types for damaged files
        raise ValueError(f"{printable(name)} {problem(error, source, 'a clip')}") from error


class _Selection:
    """The frames at the times 0, 1 / rate, 2 / rate, ... after the first frame, to the nearest half of 1 / rate."""

    def __init__(self, frames: int, height: int, width: int, rate: float) -> None:
        self.frames, self.height, self.width, self.rate = frames, height, width, rate
        self.chosen: list[Tensor] = []
        self.late = self.repeated = self.skipped = self.transparent = self.longer = False

    def read(self, shown: Iterator[Shown]) -> None:
        """Choose from all frames of a file, as far as needed."""
        held: Shown | None = None
        first = gap = 0.0
        count = 0
        for count, frame in enumerate(shown, start=1):
            if count > MAX_FRAMES:
                raise Refused(f"has more than {MAX_FRAMES:,} frames in its first {self.frames / self.rate:.3g} s")
            if held is None:
                first = frame.time
            else:
                gap = frame.time - first - held.time
                if gap <= 0:
                    continue  # it is never shown
                middle = max(gap / 2, gap - 0.5 / self.rate) if held.stands else gap / 2
                self._choose(held, until=held.time + middle)
            held = replace(frame, time=frame.time - first)
            if len(self.chosen) == self.frames and held.time > (self.frames - 0.5) / self.rate:
                self.longer = True
                return
        end = 0.0 if held is None else held.time + (held.duration or gap)
        if held is not None:
            self._choose(held, until=end - CLOSE / self.rate)
        if count == 1:  # a clip that does not change has no frame rate
            self.repeated = self.late = False
        if len(self.chosen) < self.frames:
            raise Refused(
                f"is too short: it has {count} frame{'s' * (count != 1)} in {end:.3g} s; a clip must have "
                f"{self.frames} frames at {self.rate:g} per second ({self.frames / self.rate:.3g} s)"
            )

    def _choose(self, frame: Shown, until: float) -> None:
        """Use a frame for all times up to `until` that have none yet."""
        pixels: Tensor | None = None
        while len(self.chosen) < self.frames and (target := len(self.chosen) / self.rate) <= until:
            self.repeated |= pixels is not None
            self.late |= abs(frame.time - target) * self.rate > LATE
            pixels = self._fitted(frame) if pixels is None else pixels
            self.chosen.append(pixels)
        self.skipped |= pixels is None and len(self.chosen) < self.frames
        self.transparent |= pixels is not None and frame.transparent

    def _fitted(self, frame: Shown) -> Tensor:
        pixels = frame.pixels()
        h, w = pixels.shape[1:]
        if max(h, w) > MAX_ASPECT * min(h, w):
            raise Refused(f"is {w} x {h} pixels; its longer side must be at most {MAX_ASPECT} times the shorter one")
        return fit(pixels, self.height, self.width)

    def notes(self) -> tuple[str, ...]:
        """What was converted, as in `Reading.notes`."""
        rate, seconds = f"{self.rate:g}", f"{self.frames / self.rate:.3g}"
        notes = {
            f"have another frame rate than {rate} per second, or a variable one, and are resampled by their "
            "timestamps": self.late or self.repeated or self.skipped,
            f"have fewer than {rate} frames per second, so that frames are repeated": self.repeated,
            f"are longer than {seconds} s; only their beginning is used": self.longer,
            TRANSPARENT: self.transparent,
        }
        return tuple(note for note, applies in notes.items() if applies)
