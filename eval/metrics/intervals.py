"""Confidence intervals and ties.

All intervals are 95% intervals over the random samples of a row. Rows of a comparison share their noise and prompts, so
differences and ratios are tested sample by sample (a paired test), which is much more sensitive than a comparison of
two separate intervals. The sampling noise of the reference moves all rows together and is not included.
"""

import math
from collections.abc import Sequence

from torch import Tensor

Z = 1.959964  # the two-sided 95% quantile of the standard normal distribution


def standard_error(influence: Tensor) -> float:
    """The standard error std / sqrt(N) of a figure, from its influence function at the N samples (N,)."""
    return (influence.std() / math.sqrt(len(influence))).item()


def interval(value: float, error: float, lowest: float = 0.0) -> list[float]:
    """The normal interval of a figure.

    Args:
        value: The figure.
        error: Its standard error.
        lowest: The lowest value that the figure can have.

    Returns:
        [low, high].
    """
    return [max(lowest, value - Z * error), value + Z * error]


def ratio_interval(value: float, influence: Tensor, base: float, base_influence: Tensor) -> list[float]:
    """The interval [low, high] of value / base, both measured on paired samples.

    It is the normal interval of the ratio's logarithm, by the delta method, so its ends are positive.
    """
    error = standard_error(influence / value - base_influence / base)
    return [value / base * math.exp(-Z * error), value / base * math.exp(Z * error)]


def tied(values: Sequence[float], influences: Sequence[Tensor | None]) -> list[bool]:
    """Which rows cannot be distinguished from the best one.

    Args:
        values: The rows' figures; the lowest is the best.
        influences: Their influence functions (N,). Without them (too few samples) only equal values are tied.

    Returns:
        For each row whether its paired difference from the best row is within the interval of that difference.
    """
    best = min(range(len(values)), key=values.__getitem__)
    best_influence = influences[best]
    out = []
    for value, influence in zip(values, influences, strict=True):
        margin = 0.0
        if influence is not None and best_influence is not None:
            margin = Z * standard_error(influence - best_influence)
        out.append(value - values[best] <= margin)
    return out


def share_interval(share: float, count: int) -> list[float]:
    """The Wilson score interval [low, high] of a proportion.

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).

    Args:
        share: The proportion p, in [0, 1].
        count: The number of samples n.
    """
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return [max(0.0, middle - half), min(1.0, middle + half)]
