"""`Video`: RGB clips with a fixed number of frames at a fixed rate, without sound."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from teachers.media.medium import Medium, Playable, Reading
from teachers.media.pictures import tile, to_bytes
from teachers.media.video_files import VIDEO_ENDINGS, read_clip
from teachers.media.video_writing import animation, write_clip

STILL_FRAMES = 8  # frames of a filmstrip, at most


@dataclass(frozen=True)
class Video(Medium):
    """RGB clips.

    Attributes:
        frames: Frames of a clip.
        height: Height in pixels.
        width: Width in pixels.
        rate: Frames per second.
    """

    name = "video"
    noun = "clip"
    plural = "clips"
    output = "frames"
    tag = "text-to-video"
    endings = VIDEO_ENDINGS
    save_endings = (".mp4", ".webp", ".gif")

    frames: int
    height: int
    width: int
    rate: float

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, frames, height, width)."""
        return (3, self.frames, self.height, self.width)

    @property
    def seconds(self) -> float:
        """The duration of a clip: its last frame is shown as long as the others."""
        return self.frames / self.rate

    @property
    def size(self) -> str:
        """The size in words."""
        return f"{self.frames} frames of {self.width} x {self.height} pixels at {self.rate:g} per second"

    def received(self, output: Any) -> Tensor:
        """The clips (B, 3, F, H, W) in [0, 1] of a pipeline's output.

        Args:
            output: An object with `frames`, a tuple that begins with them, or the frames: a tensor (B, F, C, H, W), an
                array (B, F, H, W, C), or a list of lists of PIL images. Integers are in 0..255.

        Raises:
            ValueError: If the output contains no clips of this shape.
        """
        clips = getattr(output, "frames", output)
        if isinstance(clips, tuple):
            clips = clips[0]
        if isinstance(clips, list) and clips:
            clips = _stacked(clips)
        if isinstance(clips, np.ndarray):
            clips = torch.from_numpy(clips).movedim(-1, 2) if clips.ndim == 5 else clips
        if not isinstance(clips, Tensor) or clips.ndim != 5 or clips.shape[2] != 3:
            shape = f" of shape {tuple(clips.shape)}" if hasattr(clips, "shape") else ""
            raise ValueError(
                "a pipeline must return clips as a tensor (B, F, 3, H, W), an array (B, F, H, W, 3) or lists of PIL "
                f"images, got {type(clips).__name__}{shape}"
            )
        clips = (clips.float() if clips.is_floating_point() else clips.float() / 255).clamp(0, 1).transpose(1, 2)
        self.check_shape(clips)
        return clips

    def read(self, source: Path | bytes, name: str | None = None) -> Reading:
        """Read the beginning of a clip, resampled to `rate` and cropped to the aspect ratio; see `read_clip`."""
        label = name if name is not None else str(source) if isinstance(source, Path) else "a clip"
        pixels, notes = read_clip(source, label, self.frames, self.height, self.width, self.rate)
        return Reading(pixels.float() / 127.5 - 1, notes)

    def judged(self, decoded: Tensor) -> Tensor:
        """Clips in [0, 1]."""
        return (decoded / 2 + 0.5).clamp(0, 1)

    def still(self, sample: Tensor) -> Tensor:
        """A filmstrip: at most 8 frames from the first to the last, beside each other with white lines between."""
        chosen = torch.linspace(0, self.frames - 1, min(STILL_FRAMES, self.frames)).round().long()
        frames = sample[:, chosen].clamp(0, 1)
        gap = max(1, self.width // 32)
        padded = torch.nn.functional.pad(frames, (0, gap), value=1.0)  # (3, n, H, W + gap)
        strip = padded.transpose(1, 2).flatten(2)
        return strip[:, :, :-gap]

    def playable(self, samples: Tensor) -> list[Playable]:
        """One animated WebP for each clip; they are equally long, so loops that start together stay in step."""
        return [
            Playable("image/webp", animation(to_bytes(sample), self.rate, "WEBP"), self.width, self.height)
            for sample in samples
        ]

    def save(self, samples: Tensor, file: Path, columns: int | None = None) -> list[Path]:
        """Write the clips as one grid to an .mp4, .webp or .gif file; .mp4 needs the package av."""
        write_clip(to_bytes(tile(samples, columns)), self.rate, file, self.check_ending(file))
        return [file]


def _stacked(clips: list[Any]) -> Any:
    """A list of clips as one tensor or array; a list of PIL images is one clip."""
    if isinstance(clips[0], PIL.Image.Image):
        clips = [clips]
    if isinstance(clips[0], list | tuple) and clips[0] and isinstance(clips[0][0], PIL.Image.Image):
        return np.stack([np.stack([np.asarray(frame.convert("RGB")) for frame in clip]) for clip in clips])
    if isinstance(clips[0], Tensor):
        return torch.stack(clips)
    return np.stack(clips) if isinstance(clips[0], np.ndarray) else clips
