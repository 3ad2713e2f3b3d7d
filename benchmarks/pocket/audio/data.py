"""Notes of recorded instruments: FluidR3 GM (MIT licence), rendered by tinysoundfont and resampled to 4 kHz."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from teachers.pocket_audio.captions import INSTRUMENTS, LOWEST, NOTES
from teachers.pocket_audio.parts import RATE, SAMPLES
from teachers.support.errors import reading
from teachers.support.regular import check_regular

PROGRAMS = (0, 10, 12, 21, 24, 40, 52, 56, 71, 73)  # General MIDI programs of INSTRUMENTS
OVERSAMPLING = 8  # rendered at 32 kHz, because tinysoundfont interpolates linearly and would alias at 4 kHz
LOUDNESS = 0.16  # root mean square of the loudest 0.1 s of an instrument's median note
ONSET = 0.05  # seconds within which a note starts, after a whole number of periods, so that a note has one phase


def _render(synth: Any, font: int, instrument: int, note: int, rng: np.random.Generator) -> np.ndarray:
    """One note, (SAMPLES,) in float32, with a random velocity, onset and length."""
    from scipy.signal import resample_poly

    rate = RATE * OVERSAMPLING
    frequency = 440 * 2 ** ((LOWEST + note - 69) / 12)
    onset = round(int(rng.uniform(0, ONSET) * frequency) / frequency * rate)
    hold = int(rng.uniform(0.35, 0.9) * rate)
    total = SAMPLES * OVERSAMPLING
    hold = min(hold, total - onset)
    synth.sounds_off()
    synth.program_select(0, font, 0, PROGRAMS[instrument])
    synth.noteon(0, LOWEST + note, int(rng.integers(60, 125)))
    held = np.frombuffer(bytes(synth.generate(hold)), dtype=np.float32)
    synth.noteoff(0, LOWEST + note)
    released = np.frombuffer(bytes(synth.generate(total - onset - hold)), dtype=np.float32)
    mono = np.concatenate([np.zeros(2 * onset, np.float32), held, released]).reshape(-1, 2).mean(1)
    return resample_poly(mono, 1, OVERSAMPLING).astype(np.float32)


def render(font: Path, repeats: int, seed: int) -> dict[str, Tensor]:
    """Render every note of every instrument `repeats` times.

    Args:
        font: The path of FluidR3_GM.sf2.
        repeats: Renderings of each of the 240 notes.
        seed: The seed of velocities, onsets and lengths.

    Returns:
        "audio", (240 * repeats, SAMPLES) in int16, and "labels", the instrument and the note of each, uint8.

    Raises:
        ValueError: If the package tinysoundfont is missing, or the SoundFont is damaged or lacks an instrument.
    """
    try:
        import tinysoundfont  # only needed here: the stages after the notes run without it
    except ImportError as error:
        raise ValueError(f"{font} needs the package tinysoundfont: pip install tinysoundfont") from error

    synth = tinysoundfont.Synth(samplerate=RATE * OVERSAMPLING, gain=-6.0)
    pairs = [(i, n) for i in range(len(INSTRUMENTS)) for n in range(len(NOTES))]
    audio = np.zeros((repeats, len(pairs), SAMPLES), np.float32)
    with reading(font):
        check_regular(font)
        loaded = synth.sfload(str(font))
        for repeat in tqdm(range(repeats), desc=f"notes, seed {seed}"):
            for k, pair in enumerate(pairs):
                audio[repeat, k] = _render(synth, loaded, *pair, np.random.default_rng((seed, repeat, k)))
    by_instrument = audio.reshape(repeats, len(INSTRUMENTS), len(NOTES), SAMPLES)
    gain = LOUDNESS / _loudness(by_instrument)
    audio = (by_instrument * gain[None, :, None, None]).reshape(-1, SAMPLES)
    peak = np.abs(audio).max(1, keepdims=True)
    audio *= np.minimum(1, 0.98 / np.maximum(peak, 1e-6))
    labels = torch.tensor(pairs, dtype=torch.uint8).repeat(repeats, 1)
    return {"audio": torch.from_numpy(np.round(audio * 32767).astype(np.int16)), "labels": labels}


def _loudness(audio: np.ndarray) -> np.ndarray:
    """The median over notes of each instrument's loudest 0.1 s, (instruments,)."""
    blocks = audio[..., : SAMPLES // 400 * 400].reshape(*audio.shape[:-1], -1, 400)
    return np.median(np.sqrt(np.square(blocks).mean(-1)).max(-1), axis=(0, 2))


def waveforms(audio: Tensor) -> Tensor:
    """Waveforms (N, 1, SAMPLES) in [-1, 1] of 16-bit audio (N, SAMPLES)."""
    return audio[:, None].float() / 32767
