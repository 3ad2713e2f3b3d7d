"""`Audio`: sounds with a fixed number of channels and samples at a fixed rate."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachers.media.medium import Medium, Playable, Reading
from teachers.media.sound_files import AUDIO_ENDINGS, read_sound
from teachers.media.spectrogram import spectrogram
from teachers.media.wav import write_wav
from teachers.support.files import atomic_write


@dataclass(frozen=True)
class Audio(Medium):
    """Sounds.

    Attributes:
        channels: 1 for mono, 2 for stereo.
        samples: Samples of each channel.
        rate: Samples per second.
    """

    name = "audio"
    noun = "sound"
    plural = "sounds"
    output = "audios"
    tag = "text-to-audio"
    endings = AUDIO_ENDINGS
    save_endings = (".wav",)

    channels: int
    samples: int
    rate: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, samples)."""
        return (self.channels, self.samples)

    @property
    def seconds(self) -> float:
        """The duration."""
        return self.samples / self.rate

    @property
    def size(self) -> str:
        """The size in words."""
        return f"{self.seconds:.3g} s at {self.rate} samples per second, {'stereo' if self.channels == 2 else 'mono'}"

    def received(self, output: Any) -> Tensor:
        """The sounds (B, channels, samples) in [-1, 1] of a pipeline's output.

        Pipelines cut sounds to a duration in seconds, which may be rounded to one sample less or more: such sounds end
        with one silent sample, or lose one.

        Args:
            output: An object with `audios`, a tuple that begins with them, or the sounds: a tensor or an array
                (B, channels, samples), or (B, samples) if they are mono, or a list of such sounds without B.

        Raises:
            ValueError: If the output contains no sounds of this shape.
        """
        sounds = getattr(output, "audios", output)
        if isinstance(sounds, tuple):
            sounds = sounds[0]
        if isinstance(sounds, list) and sounds:
            sounds = torch.stack([torch.as_tensor(sound) for sound in sounds])
        if isinstance(sounds, np.ndarray):
            sounds = torch.from_numpy(sounds)
        if isinstance(sounds, Tensor) and sounds.ndim == 2:
            sounds = sounds[:, None]
        if not isinstance(sounds, Tensor) or sounds.ndim != 3 or not sounds.is_floating_point():
            shape = f" of shape {tuple(sounds.shape)} and type {sounds.dtype}" if hasattr(sounds, "shape") else ""
            raise ValueError(
                "a pipeline must return sounds as floating-point numbers of shape (B, channels, samples) or "
                f"(B, samples), got {type(sounds).__name__}{shape}"
            )
        if abs(excess := sounds.shape[2] - self.samples) == 1:
            sounds = sounds[:, :, :-1] if excess > 0 else torch.nn.functional.pad(sounds, (0, 1))
        self.check_shape(sounds)
        return sounds.float().clamp(-1, 1)

    def read(self, source: Path | bytes, name: str | None = None) -> Reading:
        """Read the beginning of a sound, resampled to `rate`; see `read_sound`."""
        label = name if name is not None else str(source) if isinstance(source, Path) else "a sound"
        values, notes = read_sound(source, label, self.channels, self.samples, self.rate)
        return Reading(values, notes)

    def judged(self, decoded: Tensor) -> Tensor:
        """Sounds in [-1, 1]: clipped, as saved files are."""
        return decoded.clamp(-1, 1)

    def still(self, sample: Tensor) -> Tensor:
        """A spectrogram."""
        return spectrogram(sample, self.rate)

    def playable(self, samples: Tensor) -> list[Playable]:
        """One .wav with 16 bits for each sound."""
        return [Playable("audio/wav", self._wav(sample)) for sample in samples]

    def save(self, samples: Tensor, file: Path, columns: int | None = None) -> list[Path]:
        """Write .wav files with 16 bits: `file`, or several with a number before the ending; `columns` is not used."""
        self.check_ending(file)
        digits = len(str(len(samples)))
        numbered = [file.with_stem(f"{file.stem}-{number:0{digits}}") for number in range(1, len(samples) + 1)]
        files = [file] if len(samples) == 1 else numbered
        for path, sample in zip(files, samples, strict=True):
            with atomic_write(path, concurrent=True) as temporary:
                temporary.write_bytes(self._wav(sample))
        return files

    def _wav(self, sample: Tensor) -> bytes:
        stream = io.BytesIO()
        write_wav(sample, self.rate, stream)
        return stream.getvalue()
