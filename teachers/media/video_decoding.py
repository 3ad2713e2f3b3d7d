"""Decode the frames of clips: animated WebP and GIF by Pillow, other formats by the package av."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from teachers.media.file_problems import Refused, opened, start_of
from teachers.media.video_writing import import_av

# FFmpeg's containers that hold the media themselves. Playlists, such as HLS, would open other files and addresses.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
MAX_PIXELS = 2**26  # of one frame
MAX_DECODED = 2**33  # pixels of all frames that are decoded of one file: a small file can hold many large ones
SHORTEST_GIF_DELAY, DEFAULT_DELAY = 10, 100  # ms; browsers show frames with shorter delays for 100 ms
HDR_TRANSFERS = (16, 18)  # SMPTE ST 2084 (PQ) and ARIB STD-B67 (HLG), as ITU-T H.273 numbers them


@dataclass(frozen=True)
class Shown:
    """One frame of a file.

    Attributes:
        time: When it is shown, in seconds.
        duration: For how long, in seconds; 0 if unknown.
        pixels: Decodes it to (3, H, W) bytes.
        transparent: Whether it has transparent pixels.
        stands: Whether it is shown until the next one: animations merge equal frames.
    """

    time: float
    duration: float
    pixels: Callable[[], Tensor]
    transparent: bool = False
    stands: bool = False


@contextmanager
def open_clip(source: Path | bytes) -> Iterator[Iterator[Shown]]:
    """A context with the frames of a clip in the order in which they are shown, decoded one by one.

    Raises:
        Exception: What a decoder raises for a damaged file, or `Refused` for one that cannot be used.
    """
    start = start_of(source)
    animated = start[:3] == b"GIF" or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
    with (_open_animation if animated else _open_video)(source) as shown:
        yield shown


def check_size(width: int, height: int, frames: int = 1) -> None:
    """Raise Refused if a frame of this size is too large, or this number of frames together."""
    if width * height > MAX_PIXELS:
        raise Refused(f"is {width} x {height} pixels; a clip must have at most {MAX_PIXELS:,} pixels per frame")
    if width * height * frames > MAX_DECODED:
        raise Refused(
            f"has {frames:,} frames of {width} x {height} pixels before the end of a sample; they must have at most "
            f"{MAX_DECODED:,} pixels together"
        )


@contextmanager
def _open_animation(source: Path | bytes) -> Iterator[Iterator[Shown]]:
    Image.init()  # registers the formats; its result only says whether it did so in this call
    known: list[str] = [name for name in ("GIF", "WEBP") if name in Image.OPEN]
    with opened(source) as stream, Image.open(stream, formats=known) as image:
        check_size(*image.size)
        yield _animation_frames(image)


def _animation_frames(image: Image.Image) -> Iterator[Shown]:
    time, index = 0.0, 0
    while True:
        try:
            image.seek(index)
        except EOFError:
            return
        check_size(*image.size, frames=index + 1)
        image.load()  # WebP's duration is known only now
        delay = float(image.info.get("duration") or 0)
        if delay <= (SHORTEST_GIF_DELAY if image.format == "GIF" else 0):
            delay = DEFAULT_DELAY
        layer = image.convert("RGBA")
        transparent = layer.getchannel("A").getextrema() != (255, 255)
        flat = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer) if transparent else layer
        pixels = torch.from_numpy(np.array(flat.convert("RGB"))).permute(2, 0, 1)
        yield Shown(time, delay / 1000, lambda pixels=pixels: pixels, transparent, stands=True)  # type: ignore[misc]
        time, index = time + delay / 1000, index + 1


@contextmanager
def _open_video(source: Path | bytes) -> Iterator[Iterator[Shown]]:
    try:
        av = import_av("it is not an animated WebP or GIF file, and cannot be read")
    except ValueError as error:
        raise Refused(f"cannot be read: {error}") from error
    av.logging.set_level(av.logging.PANIC)
    with opened(source) as stream:
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
    check_size(track.codec_context.width, track.codec_context.height)
    track.codec_context.options = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}
    aspect = track.sample_aspect_ratio or track.codec_context.sample_aspect_ratio
    rate = float(track.average_rate or 0)
    for number, frame in enumerate(container.decode(track)):
        check_size(frame.width, frame.height, frames=number + 1)
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

    if any(component.is_alpha for component in frame.format.components):
        layer = Image.fromarray(frame.to_ndarray(format="rgba"))
        array = np.array(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"))
    else:
        array = frame.to_ndarray(format="rgb24")
    pixels = torch.from_numpy(array).permute(2, 0, 1)
    if aspect and aspect != 1:
        shown_width = max(1, round(frame.width * float(aspect)))
        check_size(shown_width, frame.height)
        pixels = V.resize(pixels, [frame.height, shown_width])
    return torch.rot90(pixels, round(frame.rotation / 90), (1, 2))
