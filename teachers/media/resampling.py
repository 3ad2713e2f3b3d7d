"""Conversion of sample rates with a band-limited filter."""

from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

HALF_LENGTH = 64  # samples of the lower rate on each side of the filter's centre
BETA = 10.0  # of the Kaiser window: about 100 dB of attenuation
CUTOFF = 0.95  # of the lower rate's Nyquist frequency
LARGEST = 2**14  # numerator and denominator of the ratio of the rates; larger ones are approximated, to 1e-4 or better
CONTEXT = 0.25  # seconds after the last sample that the filter may read: HALF_LENGTH samples at 256 Hz or more


def resample(values: Tensor, source: int, target: int) -> Tensor:
    """Convert the sample rate of a sound.

    Args:
        values: The sound (channels, samples).
        source: Its samples per second.
        target: Samples per second of the result.

    Returns:
        The sound (channels, samples * target / source, rounded up) in float32. Frequencies above 95% of the lower
        rate's Nyquist frequency are removed, so that they do not alias.
    """
    from scipy.signal import resample_poly

    up, down = ratio(source, target)
    if up == down:
        return values
    converted = resample_poly(values.double().numpy(), up, down, axis=1, window=_filter(max(up, down)))
    return torch.from_numpy(np.ascontiguousarray(converted)).float()


def ratio(source: int, target: int) -> tuple[int, int]:
    """The ratio target / source in lowest terms, approximated if its terms are larger than LARGEST."""
    if source > target:
        down, up = ratio(target, source)
        return up, down
    exact = Fraction(source, target)  # at most 1
    return exact.limit_denominator(LARGEST).denominator, exact.limit_denominator(LARGEST).numerator


@lru_cache(maxsize=8)
def _filter(longest: int) -> np.ndarray:
    """A windowed sinc for a sound whose rate was multiplied by `up`, where `longest` is max(up, down)."""
    from scipy.signal import firwin

    taps: np.ndarray = firwin(2 * HALF_LENGTH * longest + 1, CUTOFF / longest, window=("kaiser", BETA))
    return taps
