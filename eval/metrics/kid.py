"""The kernel Inception distance: an unbiased estimate, so that it can be compared between sample counts, unlike FID.

Binkowski et al., "Demystifying MMD GANs" (arXiv 1801.01401): the squared maximum mean discrepancy with the kernel
(x . y / D + 1)^3, averaged over random subsets. Subsets, their sizes and their order are those of clean-fid after
`numpy.random.seed(seed)`, so the two agree to rounding.
"""

import numpy as np
import torch
from torch import Tensor

from eval.metrics.fid import finite

SUBSETS, LARGEST = 100, 1000


def kid(
    samples: Tensor, reference: Tensor, seed: int = 0, subsets: int = SUBSETS, largest: int = LARGEST
) -> tuple[float, float]:
    """Features (N, D) and (M, D) -> the distance and its standard error over the random subsets.

    Can be a little below zero, being unbiased. Where a subset is a whole set the standard error says nothing of that
    set's own sampling noise. Raises ValueError for different D, fewer than two rows, or values that are not finite.
    """
    if samples.ndim != 2 or reference.ndim != 2 or samples.shape[1] != reference.shape[1]:
        raise ValueError(
            f"the two sets of features have the shapes {tuple(samples.shape)} and {tuple(reference.shape)}; "
            "both have to be (images, dimensions), made with the same feature extractor"
        )
    size = min(len(samples), len(reference), largest)
    if size < 2:
        raise ValueError("a kernel distance needs at least two images on both sides; draw more samples")
    samples, reference = finite(samples), finite(reference)
    if size == len(samples) == len(reference):
        subsets = 1  # every subset is the whole
    draw = np.random.RandomState(seed)
    estimates = []
    for _ in range(subsets):
        y = reference[torch.from_numpy(draw.choice(len(reference), size, replace=False))]
        x = samples[torch.from_numpy(draw.choice(len(samples), size, replace=False))]
        estimates.append(mmd(x, y))
    spread = float(np.std(estimates, ddof=1)) if subsets > 1 else 0.0
    return float(np.mean(estimates)), spread / subsets**0.5


def mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased squared discrepancy of two sets (N, D) with N members each, in float64."""
    size, dimensions = x.shape
    inside = (x @ x.T / dimensions + 1) ** 3 + (y @ y.T / dimensions + 1) ** 3
    across = (x @ y.T / dimensions + 1) ** 3
    pairs = size * (size - 1)
    return ((inside.sum() - inside.trace()) / pairs - 2 * across.mean()).item()
