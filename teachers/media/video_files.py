"""The only reader of clips: animated WebP and GIF by Pillow, MP4, WebM, MOV, Matroska and AVI by the package av.

What is read of a file is what a player shows: upright, with the shape of its pixels applied, composited on white.

| | what is read |
| --- | --- |
| frame rate | for each frame of the sample the nearest frame by its timestamp, so variable rates keep their speed |
| longer | the beginning |
| shorter | refused |
| size | scaled to cover the sample and cropped to its centre, as images |
| high dynamic range | refused |
| sound | ignored |

Only the frames up to the end of the sample are decoded, and only the chosen ones are kept, at the sample's size.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from teachers.media.file_problems import Refused, problem, start_of
from teachers.media.pictures import fit
from teachers.media.video_writing import import_av
from teachers.support.images import MAX_ASPECT
from teachers.support.text import printable

VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".webp", ".gif")
# FFmpeg's containers that hold the media themselves. Playlists, such as HLS, would open other files and addresses.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
MAX_PIXELS = 2**26  # of one frame
MAX_FRAMES = 2**16  # that are decoded of one file
LATE = 0.25  # of the time between two frames, by which an unchanged frame rate may be wrong
SHORTEST_GIF_DELAY, DEFAULT_DELAY = 10, 100  # ms; browsers show frames with shorter delays for 100 ms
HDR_TRANSFERS = (16, 18)  # SMPTE ST 2084 (PQ) and ARIB STD-B67 (HLG), as ITU-T H.273 numbers them
TRANSPARENT = "have transparent pixels, which are composited on white"


@dataclass(frozen=True)
class Shown:
    """One frame of a file.

    Attributes:
        time: When it is shown, in seconds.
        duration: For how long, in seconds; 0 if unknown.
        pixels: Decodes it to (3, H, W) bytes.
        transparent: Whether it has transparent pixels.
    """

    time: float
    duration: float
    pixels: Callable[[], Tensor]
    transparent: bool = False


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
        animated = start_of(source)[:12]
        webp = animated[:4] == b"RIFF" and animated[8:12] == b"WEBP"
        with (_open_animation if webp or animated[:3] == b"GIF" else _open_video)(source) as shown:
            return _resample(shown, frames, height, width, rate)
    except Exception as error:  # decoders raise many types for damaged files
        raise ValueError(f"{printable(name)} {problem(error, source, 'a clip')}") from error


def _resample(
    shown: Iterator[Shown], frames: int, height: int, width: int, rate: float
) -> tuple[Tensor, tuple[str, ...]]:
    """The nearest frame at each of the times 0, 1 / rate, ...; see `read_clip`."""
    end_of_sample = (frames - 0.5) / rate
    chosen: list[Tensor] = []
    indices: list[int] = []
    late = transparent = longer = False
    previous: Shown | None = None
    first = count = end = 0.0
    kept: tuple[int, Tensor] = (-1, torch.empty(0))

    def choose(index: int, frame: Shown) -> None:
        nonlocal kept, late, transparent
        if kept[0] != index:
            kept = (index, _fitted(frame.pixels(), height, width))
        late |= abs(frame.time - first - len(chosen) / rate) * rate > LATE
        transparent |= frame.transparent
        chosen.append(kept[1])
        indices.append(index)

    for number, frame in enumerate(shown):
        count = number + 1
        if count > MAX_FRAMES:
            raise Refused(f"has more than {MAX_FRAMES:,} frames in its first {frames / rate:.3g} s")
        if previous is None:
            first = frame.time
        elif frame.time <= previous.time:
            continue  # a player shows a later frame in its place
        while len(chosen) < frames and (target := len(chosen) / rate) <= frame.time - first:
            if previous is not None and target - (previous.time - first) <= frame.time - first - target:
                choose(number - 1, previous)
            else:
                choose(number, frame)
        gap = frame.duration or (frame.time - previous.time if previous is not None else 0.0)
        end = frame.time - first + gap
        previous = frame
        if len(chosen) == frames and frame.time - first > end_of_sample:
            longer = True
            break
    while previous is not None and len(chosen) < frames and (len(chosen) + 0.1) / rate < end:
        choose(int(count) - 1, previous)
    if len(chosen) < frames:
        raise Refused(
            f"is too short: it has {int(count)} frame{'s' * (count != 1)} in {end:.3g} s; a clip must have {frames} "
            f"frames at {rate:g} per second ({frames / rate:.3g} s)"
        )
    notes = []
    if late or indices != list(range(frames)):
        notes.append(
            f"have another frame rate than {rate:g} per second, or a variable one, and are resampled by their timestamps"
        )
    if len(set(indices)) < frames:
        notes.append(f"have fewer than {rate:g} frames per second, so that frames are repeated")
    if longer:
        notes.append(f"are longer than {frames / rate:.3g} s; only their beginning is used")
    if transparent:
        notes.append(TRANSPARENT)
    return torch.stack(chosen, dim=1), tuple(notes)


def _fitted(pixels: Tensor, height: int, width: int) -> Tensor:
    h, w = pixels.shape[1:]
    if max(h, w) > MAX_ASPECT * min(h, w):
        raise Refused(f"is {w} x {h} pixels; its longer side must be at most {MAX_ASPECT} times the shorter one")
    return fit(pixels, height, width)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Refused(f"is {width} x {height} pixels; a clip must have at most {MAX_PIXELS:,} pixels per frame")


@contextmanager
def _open_animation(source: Path | bytes) -> Iterator[Iterator[Shown]]:
    known = [name for name in ("GIF", "WEBP") if name in Image.OPEN or not Image.init()]
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=known) as image:
        _check_size(*image.size)
        yield _animation_frames(image)


def _animation_frames(image: Image.Image) -> Iterator[Shown]:
    time, index = 0.0, 0
    while True:
        try:
            image.seek(index)
        except EOFError:
            return
        image.load()  # WebP's duration is known only now
        delay = float(image.info.get("duration") or 0)
        if delay <= (SHORTEST_GIF_DELAY if image.format == "GIF" else 0):
            delay = DEFAULT_DELAY
        layer = image.convert("RGBA")
        transparent = layer.getchannel("A").getextrema() != (255, 255)
        flat = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer) if transparent else layer
        pixels = torch.from_numpy(np.array(flat.convert("RGB"))).permute(2, 0, 1)
        yield Shown(time, delay / 1000, lambda pixels=pixels: pixels, transparent)  # type: ignore[misc]
        time, index = time + delay / 1000, index + 1


@contextmanager
def _open_video(source: Path | bytes) -> Iterator[Iterator[Shown]]:
    try:
        av = import_av("it is not an animated WebP or GIF file, and cannot be read")
    except ValueError as error:
        raise Refused(f"cannot be read: {error}") from error
    av.logging.set_level(av.logging.PANIC)
    # FFmpeg reads from an open file: a name could be an address or one of its protocols.
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        container = av.open(stream, options={"format_whitelist": CONTAINERS}, metadata_errors="replace")
        with closing(container):
            tracks = [t for t in container.streams.video if not _is_cover(t)]
            if not tracks:
                raise Refused(f"has no video track{'; it contains sound only' * bool(container.streams.audio)}")
            yield _video_frames(container, tracks[0])


def _is_cover(track: Any) -> bool:
    """Whether the track is a still picture, as music files have it."""
    return "attached_pic" in str(track.disposition).lower()


def _video_frames(container: Any, track: Any) -> Iterator[Shown]:
    _check_size(track.codec_context.width, track.codec_context.height)
    track.codec_context.options = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}
    aspect = track.sample_aspect_ratio or track.codec_context.sample_aspect_ratio
    rate = float(track.average_rate or 0)
    for number, frame in enumerate(container.decode(track)):
        if frame.is_corrupt:
            raise Refused(f"has a damaged frame (number {number + 1}); remove or replace it")
        if int(frame.color_trc or 0) in HDR_TRANSFERS:
            raise Refused("has a high dynamic range (PQ or HLG); convert it to standard dynamic range")
        if frame.time is None and not rate:
            raise Refused("has neither timestamps nor a frame rate")
        time = number / rate if frame.time is None else float(frame.time)
        duration = float(frame.duration * frame.time_base) if frame.duration else 1 / rate if rate else 0.0
        yield Shown(time, duration, lambda frame=frame: _frame_pixels(frame, aspect))  # type: ignore[misc]


def _frame_pixels(frame: Any, aspect: Any) -> Tensor:
    """A frame (3, H, W) as players show it."""
    from torchvision.transforms.v2 import functional as V  # torchvision is slow to import

    _check_size(frame.width, frame.height)
    if any(component.is_alpha for component in frame.format.components):
        layer = Image.fromarray(frame.to_ndarray(format="rgba"))
        array = np.array(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"))
    else:
        array = frame.to_ndarray(format="rgb24")
    pixels = torch.from_numpy(array).permute(2, 0, 1)
    if aspect and aspect != 1:
        shown_width = max(1, round(frame.width * float(aspect)))
        _check_size(shown_width, frame.height)
        pixels = V.resize(pixels, [frame.height, shown_width])
    return torch.rot90(pixels, round(frame.rotation / 90), (1, 2))
