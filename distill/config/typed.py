"""Plain values, as a YAML file holds them, into dataclasses as annotated, or a ValueError that names the key.

Only what recipes are made of: other dataclasses, numbers, texts, Literals, "X | None", dicts and tuples.
"""

import dataclasses
import math
import types
import typing
from typing import Any, Literal

from teachers.support.errors import suggest

LARGEST = 2**62
_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def build(cls: type[Any], values: Any, where: str) -> Any:
    """An instance of the dataclass `cls` from plain values; unknown or missing keys and wrong types are ValueErrors."""
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'the recipe'} has to be a group of keys, not {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ValueError(
                f"unknown key {_join(where, key)!r}{suggest(str(key), fields)}; known are {', '.join(fields)}"
            )
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"the key {_join(where, name)!r} is missing")
    return cls(**{key: convert(hints[key], value, _join(where, key)) for key, value in values.items()})


def convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotation `kind`, or a ValueError that says what was expected at `where`."""
    if isinstance(value, str) and "${" in value:
        raise ValueError(f"{where} holds an interpolation ({value!r}); recipes take plain values only")
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value is False and "no" in arguments:  # YAML's reading of a bare no
            return "no"
        if value not in arguments or isinstance(value, bool):
            raise ValueError(
                f"{where} is {value!r}{suggest(str(value), arguments)}; it has to be one of {', '.join(arguments)}"
            )
        return value
    if origin in (types.UnionType, typing.Union):  # here always "X | None"
        return None if value is None else convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} has to be a group of keys, not {value!r}")
        return {str(key): convert(arguments[1], item, _join(where, key)) for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple) or (arguments[-1] is not ... and len(value) != len(arguments)):
            raise ValueError(
                f"{where} has to be a list{'' if arguments[-1] is ... else f' of {len(arguments)} values'}, "
                f"not {value!r}"
            )
        return tuple(convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"{where} is too large a number")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{where} is not a number (nan)")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} has to be {_KINDS[kind]}, not {value!r}")
    return value


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
