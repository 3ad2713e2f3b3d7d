"""Spectrograms of real, reconstructed and sampled notes as PNG files, and the sounds as WAV files."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderOobleck
from PIL import Image
from scipy.io import wavfile
from torch import Tensor

from benchmarks.pocket.audio.codec import reconstruct, spectrum
from benchmarks.pocket.audio.data import waveforms
from teachers.pocket_audio.captions import INSTRUMENTS, balanced_labels
from teachers.pocket_audio.parts import RATE

WINDOW = 256
ROOM = 4  # white pixels between two spectrograms


def spectrogram(audio: Tensor) -> np.ndarray:
    """One spectrogram (frequency, time), uint8, from -70 dB (black) to -10 dB (white), of a waveform (1, samples)."""
    decibels = 20 * spectrum(audio[None], WINDOW)[0].clamp(min=1e-6).log10()
    return ((decibels + 70) / 60).clamp(0, 1).mul(255).flip(0).byte().numpy()


def plot(rows: list[Tensor], path: Path) -> None:
    """Write rows of waveforms, each (N, 1, samples), as a grid of spectrograms."""
    grid = []
    for row in rows:
        cells = [np.pad(spectrogram(audio), ((0, ROOM), (0, ROOM)), constant_values=255) for audio in row]
        grid.append(np.concatenate(cells, axis=1))
    image = Image.fromarray(np.concatenate(grid))
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)


def listen(audio: Tensor, folder: Path, name: str) -> None:
    """Write waveforms (N, 1, samples) as 16-bit WAV files."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, sound in enumerate(audio):
        wavfile.write(folder / f"{name}_{k:02}.wav", RATE, (sound[0].clamp(-1, 1) * 32767).short().numpy())


def first_prompted(labels: Tensor) -> Tensor:
    """Rows of notes with the labels of the first ten balanced prompts, one of each instrument."""
    wanted = balanced_labels(len(INSTRUMENTS))
    return torch.stack([(labels.long() == pair).all(1).nonzero()[0, 0] for pair in wanted])


def plot_codec(vae: AutoencoderOobleck, held_out: dict[str, Tensor], path: Path) -> None:
    """Write spectrograms of a held-out note of each instrument above those of its reconstruction."""
    audio = held_out["audio"][first_prompted(held_out["labels"])]
    plot([waveforms(audio), reconstruct(vae, audio)], path)
