"""Dataclasses that check themselves: documented, typed, bounded options, from Python or from YAML values.

Everything that limits one option stands in its field: `option(0.25, "Weight of the loss.", at_least=0)`. Numbers must
be finite and must not become zero in single precision, and strings must not be empty, without saying so.
`Checked.check` tests how options depend on each other.

Supported annotations: other dataclasses, numbers, `str`, `bool`, `Path`, `Enum`, `Literal`, unions, `dict`, `tuple`,
`list`, `Sequence`, `set`, `Any`, and every class whose instances are passed from Python.
"""

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from teachers.support.errors import suggest
from teachers.support.invalid_option import InvalidOption, join_key
from teachers.support.option_limits import check_limits

LARGEST_INT = 2**62
_LISTS = {kind: kind for kind in (tuple, list, set, frozenset)} | {Sequence: tuple, Collection: tuple}
_KINDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


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
    check_limits(field.metadata, value, path)
    return value


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
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
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
        if not any(value == allowed and type(value) is type(allowed) for allowed in arguments):
            hint = suggest(str(value), map(str, arguments))
            raise InvalidOption(path, f"must be one of {', '.join(map(str, arguments))}, got {value!r}{hint}")
        return value
    if origin in (types.UnionType, typing.Union):
        return _convert_union(arguments, value, path)
    if (origin or kind) in _LISTS:
        return _convert_list(origin or kind, arguments, value, path)
    if (origin or kind) in (dict, Mapping):
        if not isinstance(value, dict):
            raise InvalidOption(path, f"must be a group of keys, got {value!r}")
        of_key, of_item = arguments or (str, Any)
        return {
            str(key) if of_key is str else convert(of_key, key, path): convert(of_item, item, join_key(path, key))
            for key, item in value.items()
        }
    return _convert_scalar(kind, value, path)


def _convert_union(kinds: Sequence[Any], value: Any, path: str) -> Any:
    """`value` as the kind of a union that it has already, else as the first that it can be converted to."""
    if value is None and type(None) in kinds:
        return None
    kinds = [kind for kind in kinds if kind is not type(None)]
    if type(value) in kinds:
        return convert(type(value), value, path)
    errors = []
    for kind in kinds:
        try:
            return convert(kind, value, path)
        except InvalidOption as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise InvalidOption(path, " or ".join(dict.fromkeys(error.problem for error in errors)))


def _convert_list(kind: Any, arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    """A list of one kind of values, or a tuple with a kind for each of its values."""
    whole = kind is tuple and arguments and arguments[-1] is not ...
    allowed = list | tuple | set | frozenset if kind in (set, frozenset) else list | tuple
    if not isinstance(value, allowed) or (whole and len(value) != len(arguments)):
        raise InvalidOption(path, f"must be a list{f' of {len(arguments)} values' if whole else ''}, got {value!r}")
    kinds = arguments if whole else [arguments[0] if arguments else Any] * len(value)
    items = enumerate(zip(kinds, value, strict=True))
    return _LISTS[kind](convert(each, item, f"{path}[{number}]") for number, (each, item) in items)


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
    """A path, a member of an enumeration by its value, or a value of a class that a plug-in's options name.

    Annotations of other kinds are not checked.
    """
    if kind is Path:
        return Path(convert(str, str(value) if isinstance(value, Path) else value, path))
    if isinstance(kind, type) and issubclass(kind, Enum) and not isinstance(value, kind):
        return kind(convert(Literal[tuple(member.value for member in kind)], value, path))
    if isinstance(kind, type) and not isinstance(value, kind):
        raise InvalidOption(path, f"must be of the type {kind.__name__}, got {value!r}")
    return value
