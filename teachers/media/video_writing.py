"""Write clips: animated WebP and GIF by Pillow, MP4 by the package av."""

import io
import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from teachers.support.files import atomic_write

QUALITY = {"quality": 90, "method": 4}  # of WebP
CONSTANT_QUALITY = "16"  # CRF of H.264; 0 is lossless and 23 the default
SMPTE_170M = 6  # as ITU-T H.273 numbers matrices


def durations(frames: int, rate: float, unit: int = 1) -> list[int]:
    """Milliseconds of each frame; the rounding errors do not add up.

    Args:
        frames: Number of frames.
        rate: Frames per second.
        unit: Durations are multiples of this number of milliseconds; GIF has 10.
    """
    edges = [round(index * 1000 / rate / unit) * unit for index in range(frames + 1)]
    return [max(unit, after - before) for before, after in itertools.pairwise(edges)]


def animation(pixels: Tensor, rate: float, kind: str) -> bytes:
    """An endless animation.

    Args:
        pixels: A clip (3, F, H, W) of bytes.
        rate: Frames per second.
        kind: "WEBP" or "GIF".

    Returns:
        The contents of the file.
    """
    frames = [Image.fromarray(frame) for frame in _arrays(pixels)]
    times = durations(len(frames), rate, 10 if kind == "GIF" else 1)
    options: dict[str, Any] = QUALITY if kind == "WEBP" else {"disposal": 2}
    stream = io.BytesIO()
    frames[0].save(stream, format=kind, save_all=True, append_images=frames[1:], duration=times, loop=0, **options)
    contents = stream.getvalue()
    if kind == "WEBP" and contents[12:16] != b"VP8X":  # equal frames: the encoder writes a picture without a duration
        return one_frame_animation(contents, frames[0].size, sum(times))
    return contents


def one_frame_animation(picture: bytes, size: tuple[int, int], duration: int) -> bytes:
    """A WebP picture as an endless animation of one frame, which keeps its duration.

    Args:
        picture: A WebP file without animation and transparency: "RIFF", size, "WEBP", and one chunk of pixels.
        size: Its width and height.
        duration: Milliseconds.

    Returns:
        The contents of the file, as the specification of the WebP container describes it (section "Animation").
    """

    def chunk(name: bytes, payload: bytes) -> bytes:
        return name + len(payload).to_bytes(4, "little") + payload + b"\0" * (len(payload) % 2)

    sides = b"".join((side - 1).to_bytes(3, "little") for side in size)
    extended = chunk(b"VP8X", b"\x02\0\0\0" + sides)  # the flag of animations
    settings = chunk(b"ANIM", b"\0" * 6)  # background; 0 repetitions: endless
    place = b"\0" * 6 + sides + min(duration, 2**24 - 1).to_bytes(3, "little") + b"\x02"  # without blending
    body = b"WEBP" + extended + settings + chunk(b"ANMF", place + picture[12:])
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def write_clip(pixels: Tensor, rate: float, file: Path, ending: str) -> None:
    """Write a clip.

    Args:
        pixels: The clip (3, F, H, W) of bytes.
        rate: Frames per second.
        file: The file.
        ending: ".mp4", ".webp" or ".gif".

    Raises:
        ValueError: For .mp4 if the package av is not installed.
    """
    if ending == ".mp4":
        import_av(f"{file} cannot be written")
    with atomic_write(file, concurrent=True) as temporary:
        if ending == ".mp4":
            _write_mp4(_arrays(pixels), rate, temporary)
        else:
            temporary.write_bytes(animation(pixels, rate, "WEBP" if ending == ".webp" else "GIF"))


def import_av(problem: str) -> Any:
    """The package av.

    Raises:
        ValueError: If it is not installed; the message begins with `problem`.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(f'{problem} without the package av; run pip install "fewstep[video]"') from error
    return av


def _arrays(pixels: Tensor) -> np.ndarray:
    return pixels.permute(1, 2, 3, 0).contiguous().numpy()


def _write_mp4(frames: np.ndarray, rate: float, file: Path) -> None:
    """H.264 with 4:2:0 colour, which every browser plays; it needs even sides, so the last row or column is doubled."""
    import av

    odd = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    frames = np.pad(frames, odd, mode="edge")
    with av.open(file, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = SMPTE_170M  # swscale's matrix; players assume another one for large clips
        stream.codec_context.color_range = 1  # 16 to 235
        stream.options = {"crf": CONSTANT_QUALITY}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
