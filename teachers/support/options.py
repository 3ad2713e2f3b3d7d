"""Dataclasses that check themselves: documented, typed, bounded options, from Python or from YAML values.

Everything that limits one option stands in its field: `option(0.25, "Weight of the loss.", at_least=0)`. Numbers must
be finite and must not become zero in single precision, and strings must not be empty, without saying so.
`Checked.check` tests how options depend on each other.

Supported annotations: other dataclasses, numbers, `str`, `bool`, `Path`, `Literal`, `X | None`, `dict`, `tuple`,
`list`, `Sequence` and `Any`.
"""

import dataclasses
import math
import struct
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from teachers.support.errors import suggest
from teachers.support.invalid_option import InvalidOption, join_key

LARGEST_INT = 2**62
LEAST = 2.0**-149  # smaller numbers are zero in single precision
_KINDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
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


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    factory: Any = dataclasses.MISSING,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    order: Literal["increase", "decrease"] | None = None,
) -> Any:
    """A dataclass field with its documentation and bounds.

    Args:
        default: The default value; without one (and without `factory`) the key is required.
        help: One sentence for `--help`, `fewstep recipes keys` and the documentation.
        factory: Makes a mutable default.
        at_least, above, at_most, below: Bounds of a number, or of every number in a tuple. `above` and `below` must
            also hold after rounding to single precision.
        order: What the numbers of a tuple must do from each to the next.
    """
    limits = {"at_least": at_least, "above": above, "at_most": at_most, "below": below, "order": order}
    metadata = {"help": help} | {name: limit for name, limit in limits.items() if limit is not None}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def redefined(cls: type[Any], name: str, default: Any, help: str | None = None) -> Any:
    """A field of `cls` with another default, for a subclass; its bounds stay.

    Args:
        cls: A dataclass.
        name: A field of it.
        default: The new default.
        help: The new documentation; None: that of `cls`.
    """
    metadata = dict(_field(cls, name).metadata)
    if help is not None:
        metadata["help"] = help
    return dataclasses.field(default=default, metadata=metadata)


def default_of(cls: type[Any], name: str) -> Any:
    """The default of the field `name` of the dataclass `cls`."""
    return _field(cls, name).default


def _field(cls: type[Any], name: str) -> dataclasses.Field[Any]:
    return next(field for field in dataclasses.fields(cls) if field.name == name)


class Checked:
    """Base class of dataclasses whose values are checked and converted when an instance is made."""

    def __post_init__(self) -> None:
        check_fields(self)
        self.check()

    def check(self) -> None:
        """Check how options depend on each other. Override it and raise InvalidOption for invalid combinations."""


def check_fields(instance: Any) -> None:
    """Convert every field of a dataclass instance to its annotated type and check its limits.

    Raises:
        InvalidOption: With the field's name, for a wrong type or a value outside the field's limits.
    """
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        if field.init:
            value = _checked(field, hints[field.name], getattr(instance, field.name), field.name)
            object.__setattr__(instance, field.name, value)


def check_value(cls: type[Any], name: str, value: Any, shown: str | None = None) -> Any:
    """One value, checked and converted as the field `name` of the dataclass `cls` would be.

    Args:
        cls: A dataclass.
        name: A field of it.
        value: The value.
        shown: What error messages call it, such as "--seed"; None: `name`.

    Raises:
        InvalidOption: For a wrong type or a value outside the field's limits.
    """
    return _checked(_field(cls, name), typing.get_type_hints(cls)[name], value, shown or name)


def _checked(field: dataclasses.Field[Any], kind: Any, value: Any, path: str) -> Any:
    value = convert(kind, value, path)
    for leaf in _leaves(value):
        if isinstance(leaf, str | Path) and (not str(leaf).strip() or "\0" in str(leaf)):
            raise InvalidOption(path, f"must be a text that is not empty, got {str(leaf)!r}")
        if isinstance(leaf, int | float) and not isinstance(leaf, bool):
            _check_bounds(field, leaf, value, path)
    order = field.metadata.get("order")
    if order and isinstance(value, tuple) and not all(_ORDERS[order](a, b) for a, b in pairwise(value)):
        raise InvalidOption(path, f"must {order}, got {list(value)}")
    return value


def _leaves(value: Any) -> Iterator[Any]:
    """The numbers and texts in a value; nested dataclasses have been checked when they were made."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    else:
        yield value


def _check_bounds(field: dataclasses.Field[Any], number: float, value: Any, path: str) -> None:
    bounds = {name: field.metadata[name] for name in _BOUNDS if name in field.metadata}
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


def build(cls: type[Any], values: Any, path: str) -> Any:
    """An instance of the dataclass `cls` from plain values, as a YAML file holds them.

    Args:
        cls: A dataclass, checked by `check_fields` whether or not it inherits from `Checked`.
        values: A dict of its fields.
        path: The dotted key of the values, "" at the top level.

    Raises:
        ValueError: With the full key, for an unknown or missing key or a value that cannot be used.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{path or 'the recipe'} must be a group of keys, got {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ValueError(
                f"unknown key {join_key(path, key)!r}{suggest(str(key), fields)}; the keys here are {', '.join(fields)}"
            )
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"the key {join_key(path, name)!r} is missing")
    converted = {key: convert(hints[key], value, join_key(path, key)) for key, value in values.items()}
    try:
        made = cls(**converted)
        if not isinstance(made, Checked):
            check_fields(made)
    except InvalidOption as error:
        raise error.within(path) from error
    return made


def convert(kind: Any, value: Any, path: str) -> Any:
    """`value` converted to the annotation `kind`; ValueError with the key `path` if it has another type."""
    if isinstance(value, str) and "${" in value:
        raise InvalidOption(path, f"holds an interpolation ({value!r}); recipes take plain values only")
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        if isinstance(value, str) and hasattr(kind, "TEXT"):  # the key that a text stands for
            value = {kind.TEXT: value}
        return value if isinstance(value, typing.cast(type, kind)) else build(typing.cast(type, kind), value, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value is False and "no" in arguments:  # YAML reads a bare no as false
            return "no"
        if value not in arguments or isinstance(value, bool):
            hint = suggest(str(value), arguments)
            raise InvalidOption(path, f"must be one of {', '.join(map(str, arguments))}, got {value!r}{hint}")
        return value
    if origin in (types.UnionType, typing.Union):  # always "X | None"
        return None if value is None else convert(next(a for a in arguments if a is not type(None)), value, path)
    if origin in (list, Sequence):
        found = convert(tuple[arguments[0], ...], value, path)  # type: ignore[valid-type]
        return list(found) if origin is list else found
    if origin is dict:
        if not isinstance(value, dict):
            raise InvalidOption(path, f"must be a group of keys, got {value!r}")
        return {str(key): convert(arguments[1], item, join_key(path, key)) for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple) or (arguments[-1] is not ... and len(value) != len(arguments)):
            length = "" if arguments[-1] is ... else f" of {len(arguments)} values"
            raise InvalidOption(path, f"must be a list{length}, got {value!r}")
        return tuple(convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    return _convert_scalar(kind, value, path)


def _convert_scalar(kind: Any, value: Any, path: str) -> Any:
    if kind not in _KINDS:
        return _convert_other(kind, value, path)
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        raise InvalidOption(
            path, f"must be at most {LARGEST_INT} in size, got a number of {len(str(abs(value)))} digits"
        )
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InvalidOption(path, f"must be {_KINDS[kind]}, got {value!r}")
    return value


def _convert_other(kind: Any, value: Any, path: str) -> Any:
    """A path, or a value of a class that a plug-in's options name; annotations of other kinds are not checked."""
    if kind is Path:
        return Path(convert(str, str(value) if isinstance(value, Path) else value, path))
    if isinstance(kind, type) and not isinstance(value, kind):
        raise InvalidOption(path, f"must be of the type {kind.__name__}, got {value!r}")
    return value
