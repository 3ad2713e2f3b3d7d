"""How far a figure can be trusted: 95% intervals over the draw of the samples, and what counts as a tie.

Rows of a comparison share their noise and prompts, so differences and ratios are judged sample by sample (the paired
test), which is much sharper than comparing two intervals. The reference's own sampling noise moves all rows together
and is not part of these intervals.
"""

import math
from collections.abc import Sequence

from torch import Tensor

Z = 1.959964  # of a normal distribution, two-sided 95%


def standard_error(influence: Tensor) -> float:
    """The standard error of a figure from its influence function at the N samples, (N,): std / sqrt(N)."""
    return (influence.std() / math.sqrt(len(influence))).item()


def interval(value: float, error: float) -> list[float]:
    """[low, high] of a figure that cannot be negative."""
    return [max(0.0, value - Z * error), value + Z * error]


def ratio_interval(value: float, influence: Tensor, base: float, base_influence: Tensor) -> list[float]:
    """[low, high] of value / base, both measured on paired samples; taken on the logarithm, hence positive."""
    error = standard_error(influence / value - base_influence / base)
    return [value / base * math.exp(-Z * error), value / base * math.exp(Z * error)]


def tied(values: Sequence[float], influences: Sequence[Tensor | None]) -> list[bool]:
    """Which rows cannot be told from the best (lowest) one: their paired difference lies within its interval.

    Without influences (too few samples) only equal values are tied.
    """
    best = min(range(len(values)), key=values.__getitem__)
    first = influences[best]
    out = []
    for value, influence in zip(values, influences, strict=True):
        room = 0.0 if influence is None or first is None else Z * standard_error(influence - first)
        out.append(value - values[best] <= room)
    return out


def share_interval(share: float, count: int) -> list[float]:
    """[low, high] of a share of `count` samples (Wilson 1927)."""
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return [max(0.0, middle - half), min(1.0, middle + half)]
