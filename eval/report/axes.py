"""Chart axes: linear and logarithmic scales with round tick values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LOG_RATIO = 12  # a largest value more than this many times the smallest gets a logarithmic axis
MAX_LOG_TICKS = 8  # more of 1, 2 and 5 times a power of ten than this leave only the powers


@dataclass(frozen=True)
class Tick:
    """A tick's position in the drawing and its text."""

    position: float
    text: str


class Axis:
    """Map values to positions between `start` and `stop` of a drawing.

    The axis begins and ends at round values. A linear axis includes zero.

    Args:
        values: The values to show; positive for a logarithmic axis.
        start: Position of the low end.
        stop: Position of the high end.
        log: Whether the scale is logarithmic.
    """

    def __init__(self, values: Sequence[float], start: float, stop: float, log: bool = False) -> None:
        self.start, self.stop, self.log = start, stop, log
        if log:
            rounded = _log_multiples(min(values) / 10, max(values) * 10)
            self.low = max(value for value in rounded if value <= min(values) * (1 + 1e-9))
            self.high = min(value for value in rounded if value >= max(values) * (1 - 1e-9) and value > self.low)
            return
        low, high = min(0.0, *values), max(0.0, *values)
        high = high if high > low else 1.0
        self.step = round_step(high - low)
        self.low = math.floor(low / self.step) * self.step
        self.high = math.ceil(high / self.step) * self.step

    def __call__(self, value: float) -> float:
        """The position of `value`."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[Tick]:
        """Ticks at round values, in increasing order."""
        values = self._log_values() if self.log else _multiples(self.step, self.low, self.high)
        return [Tick(self(value), tick_text(value)) for value in values]

    def _log_values(self) -> list[float]:
        values = _log_multiples(self.low, self.high)
        if len(values) < 3:
            return _multiples(round_step(self.high - self.low), self.low, self.high)
        return values if len(values) <= MAX_LOG_TICKS else _log_multiples(self.low, self.high, (1,))


def use_log(values: Sequence[float]) -> bool:
    """Whether `values` are positive and spread enough for a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) > LOG_RATIO


def round_step(extent: float, intervals: int = 5) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that divides `extent` into at most `intervals` parts."""
    power = 10.0 ** math.floor(math.log10(extent / intervals))
    return next(power * m for m in (1, 2, 5, 10, 20) if power * m * intervals >= extent * (1 - 1e-9))


def tick_text(value: float) -> str:
    """A round value as an axis shows it."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _multiples(step: float, low: float, high: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


def _log_multiples(low: float, high: float, multiples: Sequence[int] = (1, 2, 5)) -> list[float]:
    """`multiples` times powers of ten from `low` to `high`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"{multiple}e{decade}") for decade in decades for multiple in multiples]
    return [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
