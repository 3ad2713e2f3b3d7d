"""Training of the instrument judge."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pocket.audio.data import waveforms
from benchmarks.pocket.machine import CPU, Machine
from benchmarks.pocket.training import train
from teachers.pocket_audio.judges import InstrumentJudge

BATCH = 64


def degrade(audio: Tensor, rng: torch.Generator) -> Tensor:
    """Waveforms (N, 1, samples) with random loudness, shift in time, equaliser, and noise of two kinds.

    A judge that has only heard clean notes takes a noise floor at -50 dB for another instrument.
    """
    count, _, samples = audio.shape
    draw = {"generator": rng, "device": audio.device}
    shift = torch.randint(-200, 201, (), **draw)
    audio = audio[..., (torch.arange(samples, device=audio.device) - shift) % samples]
    decibels = 5 * torch.randn(count, 1, 8, **draw)
    gain = F.interpolate(10 ** (decibels / 20), size=samples // 2 + 1, mode="linear", align_corners=True)
    equalised = torch.fft.irfft(torch.fft.rfft(audio) * gain, samples)
    amount = 0.4 * torch.rand(count, 1, 1, **draw) ** 2  # noise that follows the sound, up to -8 dB
    following = amount * equalised * torch.randn(audio.shape, **draw)
    level = 10 ** (-4 + 2.5 * torch.rand(count, 1, 1, **draw))  # steady noise from -80 dB to -30 dB
    noisy = equalised + following + level * torch.randn(audio.shape, **draw)
    return noisy * (0.4 + torch.rand(count, 1, 1, **draw))


def train_judge(audio: Tensor, labels: Tensor, steps: int, work: Path, machine: Machine = CPU) -> InstrumentJudge:
    """Train the judge on degraded real notes."""
    torch.manual_seed(0)
    judge = InstrumentJudge().train()
    audio, labels = audio.to(machine.device), labels.to(machine.device).long()

    def loss(rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rows = torch.randint(len(audio), (BATCH,), generator=rng, device=machine.device)
        features = judge.features(degrade(waveforms(audio[rows]), rng))
        instrument = F.cross_entropy(judge.instrument(features), labels[rows, 0], label_smoothing=0.05)
        note = F.cross_entropy(judge.note(features), labels[rows, 1], label_smoothing=0.05)
        return instrument + note, {"instrument": instrument, "note": note}

    return train("judge", judge, loss, steps, 3e-3, work / "judge_state.pt", weight_decay=1e-2, machine=machine)
