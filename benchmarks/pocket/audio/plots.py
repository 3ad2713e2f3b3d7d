"""Real, reconstructed and sampled notes to look at and to listen to: spectrograms as PNG files, sounds as WAV files."""

from pathlib import Path

import torch
from diffusers import AutoencoderOobleck
from torch import Tensor

from benchmarks.pocket.audio.codec import reconstruct
from benchmarks.pocket.audio.data import waveforms
from teachers.media import Audio
from teachers.media.pictures import tile, to_pil
from teachers.pocket_audio.captions import INSTRUMENTS, balanced_labels
from teachers.pocket_audio.parts import RATE, SAMPLES

SOUND = Audio(channels=1, samples=SAMPLES, rate=RATE)


def plot(rows: list[Tensor], path: Path) -> None:
    """Write rows of waveforms, each (N, 1, samples), as a grid of spectrograms."""
    stills = torch.stack([SOUND.still(audio) for row in rows for audio in row])
    to_pil(tile(stills, columns=len(rows[0]))).save(path)


def listen(audio: Tensor, folder: Path, name: str) -> None:
    """Write waveforms (N, 1, samples) as 16-bit WAV files."""
    folder.mkdir(parents=True, exist_ok=True)
    SOUND.save(audio, folder / f"{name}.wav")


def first_prompted(labels: Tensor) -> Tensor:
    """Rows of notes with the labels of the first ten balanced prompts, one of each instrument."""
    wanted = balanced_labels(len(INSTRUMENTS))
    return torch.stack([(labels.long() == pair).all(1).nonzero()[0, 0] for pair in wanted])


def plot_codec(vae: AutoencoderOobleck, held_out: dict[str, Tensor], path: Path) -> None:
    """Write spectrograms of a held-out note of each instrument above those of its reconstruction."""
    audio = held_out["audio"][first_prompted(held_out["labels"])]
    plot([waveforms(audio), reconstruct(vae, audio)], path)
