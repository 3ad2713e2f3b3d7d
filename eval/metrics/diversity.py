"""How different the samples of one prompt are from each other, and how like the teacher's pictures of the same noise.

Diversity is the mean LPIPS (AlexNet, Zhang et al., arXiv 1801.03924) over all pairs of samples of one prompt: a student
that draws one picture a prompt shows here even where each picture is good. Faithfulness is the mean LPIPS and PSNR
between the pictures that teacher and student draw from the same noise and prompt.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.metrics.perceptual import Lpips, on_device

PROMPTS, EACH = 8, 8  # how many prompts diversity is measured on, and samples of each
SMALLEST = 64  # pixels; LPIPS sees smaller pictures enlarged, since its network was made for large ones
BATCH = 64

Distance = Callable[[Tensor, Tensor], Tensor]  # two batches (B, 3, H, W) in [0, 1] -> (B,)


def perceptual(device: torch.device) -> Distance | None:
    """LPIPS with AlexNet where its weights are on this machine; None where they would have to be downloaded."""
    if not on_device("alex"):
        return None
    metric = Lpips(device, "alex")

    @torch.no_grad()
    def distance(one: Tensor, two: Tensor) -> Tensor:
        parts = []
        for pair in zip(one.split(BATCH), two.split(BATCH), strict=True):
            a, b = (_enlarged(images.to(device)) * 2 - 1 for images in pair)
            parts.append(metric(a, b).cpu())
        return torch.cat(parts)

    return distance


def _enlarged(images: Tensor) -> Tensor:
    scale = SMALLEST / min(images.shape[2:])
    return images if scale <= 1 else F.interpolate(images, scale_factor=scale, mode="bicubic").clamp(0, 1)


def pairwise(images: Tensor, groups: Sequence[int], distance: Distance) -> float:
    """The mean distance over all pairs of images (N, 3, H, W) of one group; `groups[i]` is image i's.

    Raises ValueError where no group has two members.
    """
    pairs = [(i, j) for i, j in itertools.combinations(range(len(groups)), 2) if groups[i] == groups[j]]
    if not pairs:
        raise ValueError("diversity needs two samples of one prompt at least; draw more of each")
    left, right = (torch.tensor(side) for side in zip(*pairs, strict=True))
    return distance(images[left], images[right]).double().mean().item()


def psnr(one: Tensor, two: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of images (N, 3, H, W) in [0, 1], each pair's capped at 100 dB."""
    errors = (one - two).double().square().mean(dim=(1, 2, 3)).clamp(min=1e-10)
    return (-10 * errors.log10()).mean().item()


def plan(prompts: Sequence[str] | None, samples: int) -> tuple[list[str] | None, list[int]]:
    """Which prompts to draw for diversity and which group each sample belongs to; smaller for very few samples."""
    each = max(2, min(EACH, math.isqrt(samples)))
    if prompts is None:
        return None, [0] * each * 2
    distinct = list(dict.fromkeys(prompts))[: min(PROMPTS, each)]
    return [p for p in distinct for _ in range(each)], [i for i in range(len(distinct)) for _ in range(each)]
