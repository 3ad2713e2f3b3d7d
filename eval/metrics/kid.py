"""The kernel Inception distance (KID). Its estimate is unbiased, so different sample counts can be compared.

KID is the squared maximum mean discrepancy with the kernel k(x, y) = (x . y / D + 1)^3, averaged over random subsets.
Source: Binkowski et al., "Demystifying MMD GANs" (arXiv 1801.01401). The subsets, their sizes and their order are those
of clean-fid after `numpy.random.seed(seed)`, so both agree up to rounding.
"""

import numpy as np
import torch
from torch import Tensor

from eval.metrics.base import Figure, Metric
from eval.metrics.context import MetricContext, Row
from eval.metrics.fid import finite

SUBSETS, LARGEST = 100, 1000  # number of subsets and their size, as in clean-fid


def kid(
    samples: Tensor, reference: Tensor, seed: int = 0, subsets: int = SUBSETS, largest: int = LARGEST
) -> tuple[float, float]:
    """The kernel Inception distance between two sets of features.

    Args:
        samples: Features (N, D).
        reference: Features (M, D).
        seed: Seed of the random subsets.
        subsets: Number of subsets.
        largest: Size of a subset, if both sets are at least as large.

    Returns:
        The distance, which can be slightly negative, and its standard error over the subsets. If a subset is a whole
        set, the standard error does not include the sampling noise of that set.

    Raises:
        ValueError: For different D, fewer than two rows, or values that are not finite.
    """
    if samples.ndim != 2 or reference.ndim != 2 or samples.shape[1] != reference.shape[1]:
        raise ValueError(
            f"the two sets of features have the shapes {tuple(samples.shape)} and {tuple(reference.shape)}; both must "
            "be (images, dimensions) from the same feature extractor"
        )
    size = min(len(samples), len(reference), largest)
    if size < 2:
        raise ValueError("a kernel distance needs at least two images in both sets; generate more samples")
    samples, reference = finite(samples), finite(reference)
    if size == len(samples) == len(reference):
        subsets = 1  # every subset is the whole set
    random = np.random.RandomState(seed)
    estimates = []
    for _ in range(subsets):
        y = reference[torch.from_numpy(random.choice(len(reference), size, replace=False))]
        x = samples[torch.from_numpy(random.choice(len(samples), size, replace=False))]
        estimates.append(mmd(x, y))
    deviation = float(np.std(estimates, ddof=1)) if subsets > 1 else 0.0
    return float(np.mean(estimates)), deviation / float(subsets**0.5)


def mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased squared maximum mean discrepancy of two sets (N, D) of equal size (arXiv 1801.01401, equation 4)."""
    size, dimensions = x.shape
    within = (x @ x.T / dimensions + 1) ** 3 + (y @ y.T / dimensions + 1) ** 3
    across = (x @ y.T / dimensions + 1) ** 3
    pairs = size * (size - 1)
    return float(((within.sum() - within.trace()) / pairs - 2 * across.mean()).item())


class KernelInceptionDistance(Metric):
    """KID to the reference, for Inception features and a reference that includes its features."""

    key = "kid"
    heading = "KID"
    help = "Kernel Inception distance, times 1000. Lower is better; it is unbiased, so it can be slightly negative."
    higher_is_better = False
    needs = frozenset({"features", "reference_features", "inception_features"})
    scale = 1000
    position = 20
    summary = False

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.heading = f"KID-{context.extractor.name}@{context.samples}"

    def compute(self, row: Row) -> Figure | None:
        """The distance, without an interval."""
        assert row.reference.features is not None
        return Figure(kid(row.features, row.reference.features, self.context.seed)[0])
