"""The documentation of options: the fields of dataclasses whose fields are `teachers.support.options.option`."""

import dataclasses
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from teachers.support.invalid_option import join_key


@dataclasses.dataclass(frozen=True)
class KeyDoc:
    """One documented key: dotted name, type, default and help, all as text."""

    key: str
    kind: str
    default: str
    help: str


def document(cls: type[Any], prefix: str = "") -> list[KeyDoc]:
    """The documentation of every key of the dataclass `cls`, groups flattened to dotted keys, in order."""
    hints, out = typing.get_type_hints(cls), []
    for field in [field for field in dataclasses.fields(cls) if field.init]:
        kind, key = hints[field.name], join_key(prefix, field.name)
        arguments = typing.get_args(kind)
        if dataclasses.is_dataclass(kind):
            out += document(typing.cast(type, kind), key)
        elif typing.get_origin(kind) is dict and dataclasses.is_dataclass(arguments[1]):
            out += document(typing.cast(type, arguments[1]), f"{key}.NAME")
        else:
            out.append(KeyDoc(key, _kind_text(kind), _default_text(field), field.metadata.get("help", "")))
    return out


def _kind_text(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (types.UnionType, typing.Union):
        return " | ".join("null" if a is type(None) else _kind_text(a) for a in arguments)
    if origin is tuple:
        return f"list of {', '.join(_kind_text(each) for each in arguments if each is not ...)}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " | ".join(str(member.value) for member in kind)
    return {Any: "any", bool: "true | false", Path: "string", int: "int", float: "float", str: "string"}.get(
        kind, "group of keys"
    )


def _default_text(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "{}" if field.default_factory is not dataclasses.MISSING else "required"
    value = field.default
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(list(value)) if isinstance(value, tuple) else str(value)
