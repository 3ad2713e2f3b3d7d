"""The evaluation of a pocket teacher of clips or sounds, for its model card."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PARALLEL = 200  # samples that are judged at a time
LEAST_SAMPLES = 4  # whose Frechet distance, and that of their halves, exist


class Judged(NamedTuple):
    """What a judge finds in samples.

    Attributes:
        classified: The share with the right class or instrument, by the judge's network.
        measured: The share with the right motion or note, by arithmetic.
        features: The judge's features (N, D).
    """

    classified: float
    measured: float
    features: Tensor


@torch.no_grad()
def assess(judge: nn.Module, measure: Callable[[Tensor], Tensor], samples: Tensor, labels: Tensor) -> Judged:
    """Judge samples.

    Args:
        judge: The judge of the classes or instruments.
        measure: The index (B,) of the motion or note of each of B samples.
        samples: Samples in the judged range, (N, ...).
        labels: Their classes or instruments, and their motions or notes, (N, 2).
    """
    batches = samples.split(PARALLEL)
    features = torch.cat([judge.features(batch) for batch in batches])
    classes = torch.cat([judge(batch).argmax(dim=1) for batch in batches])
    measured = torch.cat([measure(batch) for batch in batches])
    right = (torch.stack([classes, measured], dim=1) == labels).double().mean(dim=0)
    return Judged(*right.tolist(), features)


def halves(count: int) -> tuple[Tensor, Tensor]:
    """The rows of two random halves of the held-out samples; the second is the reference of Frechet distances."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[: count // 2], order[count // 2 :]


def write(staged: Path, figures: dict[str, Any], card: str) -> None:
    """Write figures.json and the pipeline's model card, and print the figures."""
    text = json.dumps(figures, indent=2)
    (staged / "figures.json").write_text(text + "\n", encoding="utf-8")
    (staged / "pipeline" / "README.md").write_text(card, encoding="utf-8")
    print(text)
