"""Training of the judge of classes."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pocket.machine import CPU, Machine
from benchmarks.pocket.training import train
from benchmarks.pocket.video.data import random_clips
from teachers.pocket_video.judges import ClipJudge

BATCH = 32


def degrade(clips: Tensor, rng: torch.Generator) -> Tensor:
    """Clips (B, 3, F, H, W) in [-1, 1] with random contrast, blur and noise.

    A judge that has seen only sharp clips takes the blur of a decoder for another class.
    """
    small = F.avg_pool3d(clips, (1, 2, 2))
    blurred = F.interpolate(small, clips.shape[2:], mode="trilinear", align_corners=False)

    def random() -> Tensor:
        return torch.rand(len(clips), 1, 1, 1, 1, generator=rng, device=clips.device)

    amount = random() ** 2
    mixed = torch.lerp(clips, blurred, amount)
    contrast = 0.75 + 0.5 * random()
    noise = 0.15 * random() * torch.randn(clips.shape, generator=rng, device=clips.device)
    return ((mixed + 1) * contrast - 1 + noise).clamp(-1, 1)


def train_judge(photographs: Tensor, labels: Tensor, steps: int, work: Path, machine: Machine = CPU) -> ClipJudge:
    """Train the judge on degraded real clips."""
    torch.manual_seed(0)
    photographs, labels = photographs.to(machine.device), labels.to(machine.device)

    def loss(rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        clips, wanted = random_clips(photographs, labels, BATCH, rng)
        logits = judge(degrade(clips, rng) / 2 + 0.5)
        right = (logits.argmax(1) == wanted[:, 0]).float().mean()
        return F.cross_entropy(logits, wanted[:, 0], label_smoothing=0.05), {"right": right}

    judge = ClipJudge().train()
    return train("judge", judge, loss, steps, 3e-3, work / "judge_state.pt", weight_decay=1e-2, machine=machine)
