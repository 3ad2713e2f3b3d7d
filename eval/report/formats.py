"""Figures as text, the same in HTML, Markdown and the terminal."""

from collections.abc import Sequence
from typing import Any

NOTHING = "–"


def significant(value: float | None) -> str:
    """About three significant digits without exponents: 0.123, 1.23, 12.3, 1,235."""
    if value is None:
        return NOTHING
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    if size >= 0.9995:
        return f"{value:.2f}"
    return f"{value:#.3g}" if size >= 1e-3 else f"{value:.1g}" if value else "0"


def formatted(value: float | None, spec: str = "", scale: float = 1) -> str:
    """A figure as text.

    Args:
        value: The figure, or None.
        spec: A format specification such as ".3f" or ".1%"; "" means three significant digits.
        scale: A factor.
    """
    if value is None:
        return NOTHING
    return format(value * scale, spec) if spec else significant(value * scale)


def between(value: Sequence[float] | None, spec: str = "", scale: float = 1) -> str:
    """The two ends of an interval; arguments as for `formatted`."""
    if value is None:
        return NOTHING
    low, high = (formatted(end, spec, scale) for end in value)
    return f"{low.removesuffix('%')}–{high}"


def ratio_between(value: Sequence[float] | None) -> str:
    """The interval of a ratio; it is called a tie if it contains 1."""
    return between(value) + (" tie" if contains_one(value) else "")


def contains_one(interval: Sequence[float] | None) -> bool:
    """Whether the interval of a ratio contains 1."""
    return interval is not None and interval[0] <= 1 <= interval[1]


def times(value: float | None) -> str:
    """A ratio, such as "2.50×"."""
    return NOTHING if value is None else significant(value) + "×"


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def training(cost: dict[str, Any] | None) -> str:
    """The cost of training: steps, time and device, as far as they are known."""
    if not cost:
        return NOTHING
    parts = []
    if cost.get("steps") is not None:
        exported = cost.get("exported_step", cost["steps"])
        best = "" if exported == cost["steps"] else f" (best EMA: step {exported:,})"
        parts.append(f"{cost['steps']:,} steps{best}")
    if cost.get("seconds") is not None:
        parts.append(duration(cost["seconds"]))
    if cost.get("device"):
        parts.append(str(cost["device"]))
    return ", ".join(parts) or NOTHING


def at_batches(value: list[dict[str, float]] | None) -> str:
    """Throughput at each batch size."""
    return NOTHING if not value else " / ".join(significant(entry["images_per_second"]) for entry in value)


def spread(row: dict[str, Any]) -> str:
    """The 5th to 95th percentile of a row's latency."""
    return f"{significant(row['latency_ms_p5'])}–{significant(row['latency_ms_p95'])}"
