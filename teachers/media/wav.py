"""Read and write .wav files by the standard library."""

import wave
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from teachers.media.file_problems import Refused

UNKNOWN_LENGTH = 2**31 - 2**16  # bytes; programs that write to a pipe do not know the length and store about this
MIN_RATE, MAX_RATE = 1000, 768_000  # samples per second
MAX_CHANNELS = 2


def check_format(channels: int, rate: int) -> None:
    """Check the header of a file before anything is read.

    Raises:
        Refused: If it has too many channels, or an impossible sample rate.
    """
    if not MIN_RATE <= rate <= MAX_RATE:
        raise Refused(f"has a sample rate of {rate:,}; it must be from {MIN_RATE:,} to {MAX_RATE:,}")
    if channels > MAX_CHANNELS:
        raise Refused(f"has {channels} channels; a sound must have 1 or 2, so mix it down first")


def write_wav(sound: Tensor, rate: int, stream: BinaryIO) -> None:
    """Write a sound with 16 bits per sample.

    Args:
        sound: Values (channels, samples) in [-1, 1]; others are clipped, and NaN becomes 0.
        rate: Samples per second.
        stream: Where the file is written to.
    """
    values = sound.detach().float().nan_to_num().clamp(-1, 1).cpu()
    with wave.open(stream, "wb") as file:
        file.setnchannels(len(values))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((values * 32767).round().short().T.contiguous().numpy().astype("<i2").tobytes())


def read_wav(stream: BinaryIO, most: float) -> tuple[Tensor, int, bool]:
    """Read the beginning of a .wav file with integers (PCM).

    Args:
        stream: The file.
        most: Seconds to read at most.

    Returns:
        Values (channels, samples) in [-1, 1), samples per second, and whether there are more.

    Raises:
        wave.Error: If it is no .wav file, or has floating-point or compressed samples.
        ValueError: If it ends before the length that it declares.
    """
    with wave.open(stream, "rb") as file:
        channels, width, rate, declared = (
            file.getnchannels(),
            file.getsampwidth(),
            file.getframerate(),
            file.getnframes(),
        )
        check_format(channels, rate)
        wanted = min(declared, int(most * rate) + 1)
        data = file.readframes(wanted)
        count = len(data) // (channels * width)
        if count < wanted and declared * channels * width < UNKNOWN_LENGTH:
            raise Refused(f"is truncated: it has {count} of {declared} samples; remove or replace it")
        data = data[: count * channels * width]
    values = torch.from_numpy(_integers(data, width)).reshape(count, channels).T
    return values, rate, declared > wanted and count == wanted


def _integers(data: bytes, width: int) -> np.ndarray:
    """Integers of 1 (unsigned), 2, 3 or 4 (signed) bytes as float32 values in [-1, 1)."""
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return (padded.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    if width in (2, 4):
        return (np.frombuffer(data, f"<i{width}") / 2.0 ** (8 * width - 1)).astype(np.float32)
    raise Refused(f"has {8 * width} bits per sample; it must have 8, 16, 24 or 32")
