"""Files of clips for tests."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image as PillowImage

from teachers.media import Video

CLIP = Video(frames=9, height=32, width=32, rate=8)


def levels(count: int, first: int = 40, step: int = 8) -> list[int]:
    """Grey levels that tell frames apart after compression."""
    return [first + step * index for index in range(count)]


def grey_frames(values, height=32, width=32) -> list[np.ndarray]:
    return [np.full((height, width, 3), value, np.uint8) for value in values]


def mp4(file: Path, frames, times=None, rate=8, codec="libx264", sound=False, **properties) -> Path:
    """A video file. `times` are timestamps in units of 1 / 1000 s; without them the rate is constant."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = properties.pop("pix_fmt", "yuv420p")
        if codec == "libx264":
            stream.options = {"crf": "6", **properties.pop("options", {})}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in properties.items():
            setattr(stream.codec_context, name, value)
        track = container.add_stream("aac", rate=8000) if sound else None
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track:
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            noise.rate = 8000
            container.mux(track.encode(noise))
            container.mux(track.encode())
    return file


def animation(file: Path, frames, durations, **options) -> Path:
    images = [PillowImage.fromarray(frame) for frame in frames]
    lossless = {"lossless": True} if file.suffix == ".webp" else {}
    images[0].save(file, save_all=True, append_images=images[1:], duration=durations, loop=0, **lossless, **options)
    return file


def levels_of(reading) -> list[int]:
    """The mean of each frame as an 8-bit grey level."""
    return ((reading.values.mean(dim=(0, 2, 3)) + 1) * 127.5).round().int().tolist()


def noise_file(folder: Path, name: str = "noise.mp4") -> Path:
    frames = list(np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8))
    return mp4(folder / name, frames)
