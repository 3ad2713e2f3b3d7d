"""The limits of an option: bounds of its numbers, and texts that are not empty."""

import math
import struct
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from teachers.support.invalid_option import InvalidOption

LEAST = 2.0**-149  # smaller numbers are zero in single precision
_BOUNDS: Mapping[str, tuple[Any, str]] = {
    "at_least": (lambda value, bound: value >= bound, "at least"),
    "above": (lambda value, bound: value > bound, "above"),
    "at_most": (lambda value, bound: value <= bound, "at most"),
    "below": (lambda value, bound: value < bound, "below"),
}
_ORDERS: Mapping[str, Any] = {
    "increase": lambda first, second: first < second,
    "decrease": lambda first, second: first > second,
}


def check_limits(metadata: Mapping[str, Any], value: Any, path: str) -> None:
    """Check a value against the limits of its field.

    Args:
        metadata: Of the field, which `teachers.support.options.option` made.
        value: The value, of the field's type.
        path: What error messages call it.

    Raises:
        InvalidOption: If a number or a text in it is outside the limits.
    """
    for leaf in _leaves(value):
        if isinstance(leaf, str | Path) and (not str(leaf).strip() or "\0" in str(leaf)):
            raise InvalidOption(path, f"must be a text that is not empty, got {str(leaf)!r}")
        if isinstance(leaf, int | float) and not isinstance(leaf, bool):
            _check_bounds(metadata, leaf, value, path)
    order = metadata.get("order")
    if order and isinstance(value, tuple) and not all(_ORDERS[order](a, b) for a, b in pairwise(value)):
        raise InvalidOption(path, f"must {order}, got {list(value)}")


def _leaves(value: Any) -> Iterator[Any]:
    """The numbers and texts in a value; nested dataclasses have been checked when they were made."""
    if isinstance(value, tuple | list | set | frozenset):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    else:
        yield value


def _check_bounds(metadata: Mapping[str, Any], number: float, value: Any, path: str) -> None:
    bounds = {name: metadata[name] for name in _BOUNDS if name in metadata}
    shown = list(value) if isinstance(value, tuple) else value
    if not math.isfinite(number):
        words = ", ".join(_words(name, bound) for name, bound in bounds.items())
        raise InvalidOption(path, f"must be {words}{' and ' * bool(words)}finite, got {shown}")
    single = _single(number)  # networks and losses compute in single precision
    for name, bound in bounds.items():
        holds = _BOUNDS[name][0]
        if not holds(number, bound):
            raise InvalidOption(path, f"must be {_words(name, bound)}, got {shown}")
        if name in ("above", "below") and not holds(single, bound):
            raise InvalidOption(path, f"must be {_words(name, bound)} in single precision, got {shown}")
    if math.isinf(single):
        raise InvalidOption(path, f"must be finite in single precision, got {shown}")
    if number and not single:
        raise InvalidOption(path, f"must be 0 or at least {LEAST:.2g} in size, got {shown}")


def _words(name: str, bound: float) -> str:
    return (
        "positive"
        if (name, bound) == ("above", 0)
        else f"{_BOUNDS[name][1]} {bound if isinstance(bound, int) else f'{bound:g}'}"
    )


def _single(number: float) -> float:
    """`number` in single precision, infinite if it is too large."""
    try:
        return float(struct.unpack("f", struct.pack("f", number))[0])
    except OverflowError:
        return math.copysign(math.inf, number)
