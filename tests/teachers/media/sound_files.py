"""Files of sounds for tests."""

import wave

import numpy as np
import torch
from torch import Tensor

from teachers.media import Audio

RATE = 8000


LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


SOUND = Audio(channels=1, samples=8000, rate=RATE)


def tone(frequency: float, seconds: float = 1.0, rate: int = RATE, channels: int = 1, level: float = 0.5) -> np.ndarray:
    """A sine (samples, channels)."""
    values = level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    return np.repeat(values[:, None], channels, axis=1)


def pcm(file, values: np.ndarray, rate: int = RATE, width: int = 2):
    """A .wav file of integers, written byte by byte as the format defines them."""
    scaled = np.clip(np.round(values * 2.0 ** (8 * width - 1)), -(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1)
    integers = scaled.astype(np.int64)
    data = b"".join(
        (int(v) + 128).to_bytes(1, "little") if width == 1 else int(v).to_bytes(width, "little", signed=True)
        for v in integers.flatten()
    )
    with wave.open(str(file), "wb") as stream:
        stream.setnchannels(values.shape[1])
        stream.setsampwidth(width)
        stream.setframerate(rate)
        stream.writeframes(data)
    return file


def strongest(sound: Tensor, rate: int = RATE) -> float:
    """The strongest frequency in Hz."""
    spectrum = torch.fft.rfft(sound.double() * torch.hann_window(sound.shape[-1])).abs()
    return spectrum.flatten().argmax().item() * rate / sound.shape[-1]
