"""Diversity: mean LPIPS between samples of the same prompt.

A student that generates one image per prompt has no diversity, even if each image is good. The distance is LPIPS with
AlexNet (Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", arXiv 1801.03924).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eval.metrics.base import Figure, GroupMetric
from eval.metrics.context import Distance, Row

PROMPTS, SAMPLES_PER_PROMPT = 8, 8  # at most


def prompt_groups(prompts: Sequence[str] | None, samples: int) -> tuple[list[str] | None, list[int]]:
    """The additional samples that diversity is measured on; fewer if a row has very few samples.

    Args:
        prompts: The prompts of the row's samples, or None.
        samples: The number of the row's samples.

    Returns:
        A prompt for each additional sample (or None), and the number of the group that the sample belongs to.
    """
    each = max(2, min(SAMPLES_PER_PROMPT, math.isqrt(samples)))
    if prompts is None:
        return None, [0] * each * 2
    distinct = list(dict.fromkeys(prompts))[: min(PROMPTS, each)]
    return [p for p in distinct for _ in range(each)], [i for i in range(len(distinct)) for _ in range(each)]


def pairwise(images: Tensor, groups: Sequence[int], distance: Distance) -> Tensor:
    """The distances between all pairs of images of the same group.

    Args:
        images: Images (N, 3, H, W) in [0, 1].
        groups: The group of each image.
        distance: The distance of two batches.

    Returns:
        The distances (P,).

    Raises:
        ValueError: If no group has two members.
    """
    pairs = [(i, j) for i, j in itertools.combinations(range(len(groups)), 2) if groups[i] == groups[j]]
    if not pairs:
        raise ValueError("diversity needs at least two samples of one prompt")
    left, right = (torch.tensor(side) for side in zip(*pairs, strict=True))
    return distance(images[left], images[right])


class DiversityLpips(GroupMetric):
    """Mean LPIPS over all pairs of samples of the same prompt."""

    key = "diversity_lpips"
    heading = "Diversity (LPIPS)"
    help = "Higher is more diverse. Mean LPIPS between samples of one prompt, up to 8 prompts with 8 samples each."
    higher_is_better = True
    needs = frozenset({"lpips"})
    format = ".3f"
    position = 40
    summary = False

    def score_groups(self, images: Tensor, groups: Sequence[int]) -> Tensor:
        """LPIPS of each pair."""
        assert self.context.lpips is not None
        return pairwise(images, groups, self.context.lpips)

    def cache_key(self) -> list[Any]:
        """The scores depend on the weights of LPIPS."""
        return [*super().cache_key(), getattr(self.context.lpips, "weights", None)]

    def compute(self, row: Row) -> Figure:
        """The mean, without an interval: pairs that share an image are not independent."""
        return Figure(row.scores[self.key].double().mean().item())
