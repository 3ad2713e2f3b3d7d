"""Figures as text: one way for HTML, Markdown and terminal."""

from typing import Any

NOTHING = "–"


def significant(value: float | None) -> str:
    """About three significant digits, without exponents: 0.123, 1.23, 12.3, 1,235."""
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


def times(value: float | None) -> str:
    return NOTHING if value is None else significant(value) + "×"


def share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value * 100:.1f}%"


def duration(seconds: float) -> str:
    """Seconds in the unit a person would choose."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def training(cost: dict[str, Any] | None) -> str:
    """What making the student took, from the parts of its cost that are known."""
    if not cost:
        return NOTHING
    parts = []
    if cost.get("steps") is not None:
        parts.append(f"{cost['steps']:,} steps")
    if cost.get("seconds") is not None:
        parts.append(duration(cost["seconds"]))
    if cost.get("device"):
        parts.append(str(cost["device"]))
    return ", ".join(parts) or NOTHING


def between(value: list[float] | None) -> str:
    """An interval's two ends."""
    return NOTHING if value is None else f"{significant(value[0])}–{significant(value[1])}"


def ratio_between(value: list[float] | None) -> str:
    """A ratio's interval, and whether it holds 1."""
    return between(value) + (" tie" if value is not None and value[0] <= 1 <= value[1] else "")


def percent_between(value: list[float] | None) -> str:
    return NOTHING if value is None else f"{value[0] * 100:.1f}–{value[1] * 100:.1f}%"


def at_batches(value: list[dict[str, float]] | None) -> str:
    """Throughput at each batch size."""
    return NOTHING if not value else " / ".join(significant(entry["images_per_second"]) for entry in value)
