"""The only reader of sounds: .wav by the standard library, other formats by the packages soundfile and av.

| | what is read |
| --- | --- |
| sample rate | resampled with a band-limited filter (`teachers.media.resampling`) |
| longer | the beginning |
| shorter | padded with silence at the end |
| one channel, where a sample has two | repeated |
| two channels, where a sample has one | averaged |
| more than two channels | refused |
| floating-point values above full scale | clipped; far above it, refused |
| NaN and infinity | refused |

Only the part that is used is decoded.
"""

import wave
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from teachers.media.file_problems import Refused, opened, problem
from teachers.media.resampling import CONTEXT, resample
from teachers.media.wav import check_format, read_wav
from teachers.support.text import printable

AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".m4a", ".mp4", ".webm", ".mov", ".mkv")
# FFmpeg's containers that hold the sound themselves. Playlists, such as HLS, would open other files and addresses.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mp3,ogg,flac,wav,aac,aiff"
FULL_SCALE = 1.0
LOUDEST = 8.0  # times full scale; values above it are in another unit
LONGEST = 600.0  # seconds of a sound whose size is read
SILENCE = 1e-5  # -100 dB of full scale

Decoded = tuple[Tensor, int, bool]  # values (channels, samples), samples per second, whether there are more


def read_sound(
    source: Path | bytes, name: str, channels: int, samples: int, rate: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Read the beginning of a sound.

    Args:
        source: A file, or the contents of one.
        name: Its name in messages.
        channels: Channels of the result, 1 or 2.
        samples: Samples of the result.
        rate: Samples per second of the result.

    Returns:
        The sound (channels, samples) in [-1, 1], and what was converted, as in `Reading.notes`.

    Raises:
        ValueError: If the file is damaged, has no sound, or has values that are not finite; the message names it.
    """
    try:
        values, source_rate, more = _decode(source, samples / rate + CONTEXT)
        return _prepare(values, source_rate, more, channels, samples, rate)
    except Exception as error:  # decoders raise many types for damaged files
        raise ValueError(f"{printable(name)} {problem(error, source, 'a sound')}") from error


def sound_size(source: Path | bytes, name: str) -> tuple[int, int, int]:
    """Channels, samples and samples per second of a sound, of which at most `LONGEST` seconds are read.

    Args:
        source: A file, or the contents of one.
        name: Its name in messages.

    Raises:
        ValueError: If the file is damaged or has no sound; the message names it.
    """
    try:
        values, rate, _ = _decode(source, LONGEST)
        if values.shape[1] == 0:
            raise Refused("has no samples; remove or replace it")
    except Exception as error:  # decoders raise many types for damaged files
        raise ValueError(f"{printable(name)} {problem(error, source, 'a sound')}") from error
    return min(2, len(values)), values.shape[1], rate


def _prepare(
    values: Tensor, source_rate: int, more: bool, channels: int, samples: int, rate: int
) -> tuple[Tensor, tuple[str, ...]]:
    notes = []
    if values.shape[1] == 0:
        raise Refused("has no samples; remove or replace it")
    if not bool(values.isfinite().all()):
        raise Refused("has values that are not finite (NaN or infinity); remove or replace it")
    peak = values.abs().max().item()
    if peak > LOUDEST:
        raise Refused(f"has values up to {peak:.3g}; floating-point samples must be in [-1, 1]")
    if peak > FULL_SCALE:
        notes.append("exceed full scale and are clipped to [-1, 1]")
        values = values.clamp(-1, 1)
    if peak < SILENCE:
        notes.append("are silent")
    if len(values) > channels:
        notes.append("have two channels, which are averaged")
        values = values.mean(dim=0, keepdim=True)
    elif len(values) < channels:
        notes.append("have one channel, which is repeated")
        values = values.expand(channels, -1)
    if source_rate != rate:
        notes.append(f"have another sample rate than {rate} and are resampled")
        values = resample(values, source_rate, rate).clamp(-1, 1)
    if values.shape[1] > samples + 1 or more:
        notes.append(f"are longer than {samples / rate:.3g} s; only their beginning is used")
    missing = samples - values.shape[1]
    if missing > 1:  # a rounded duration may be one sample less
        notes.append(f"are shorter than {samples / rate:.3g} s and end with silence")
    if missing > 0:
        values = torch.nn.functional.pad(values, (0, missing))
    return values[:, :samples].contiguous(), tuple(notes)


def _decode(source: Path | bytes, most: float) -> Decoded:
    """The first `most` seconds of a file, by the first decoder that knows its format."""
    with opened(source) as stream:
        try:
            return read_wav(stream, most)
        except (wave.Error, EOFError):
            pass  # another format, or a .wav file with floating-point samples
    reasons, missing = [], []
    for package, decode in (("soundfile", _by_soundfile), ("av", _by_av)):
        try:
            library = import_module(package)
        except ImportError:
            missing.append(package)
            continue
        with opened(source) as stream:
            try:
                return decode(library, stream, most)
            except UnknownFormat as error:
                reasons.append(str(error))
    if missing:
        raise Refused(
            f"cannot be read as a sound: it is no .wav file with integer samples, and {' and '.join(missing)} "
            f'{"are" if len(missing) > 1 else "is"} not installed; run pip install "fewstep[audio,video]"'
        )
    raise ValueError(reasons[0])


class UnknownFormat(Exception):
    """The decoder does not know the format."""


def _by_soundfile(soundfile: Any, stream: BinaryIO, most: float) -> Decoded:
    try:
        with soundfile.SoundFile(stream) as file:
            check_format(file.channels, file.samplerate)
            wanted = int(most * file.samplerate) + 1
            values = file.read(wanted, dtype="float32", always_2d=True)
            return torch.from_numpy(values).T, int(file.samplerate), len(values) == wanted < file.frames
    except soundfile.LibsndfileError as error:
        raise UnknownFormat(error.error_string) from error


def _by_av(av: Any, stream: BinaryIO, most: float) -> Decoded:
    av.logging.set_level(av.logging.PANIC)
    try:
        container = av.open(stream, options={"format_whitelist": CONTAINERS}, metadata_errors="replace")
    except av.error.InvalidDataError as error:
        raise UnknownFormat(error) from error
    with closing(container):
        if not container.streams.audio:
            raise Refused("has no audio track")
        track = container.streams.audio[0]
        rate, channels = int(track.rate), int(track.channels)
        check_format(channels, rate)
        resampler = av.AudioResampler(format="fltp", rate=rate)
        wanted, parts, count = int(most * rate) + 1, [], 0
        for frame in container.decode(track):
            for part in resampler.resample(frame):
                parts.append(part.to_ndarray())
                count += part.samples
            if count > wanted:
                break
    values = np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.float32)
    return torch.from_numpy(values[:, :wanted]), rate, count > wanted
