"""Overrides of a recipe: the `key=value` words of a command line.

A key that holds text takes the value exactly as it was given: `name="exp #2"`, `data.prompts=007`. Other values are
read as YAML.
"""

import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal

from distill.config.registry import DISTILLERS, find
from teachers.support.yaml_files import parse_value


def apply_overrides(values: dict[str, Any], overrides: Sequence[str], recipe: type) -> None:
    """Set keys of a recipe's plain values, in place and in order. A group of keys is merged into the existing one.

    Args:
        values: The values, as a YAML file holds them.
        overrides: `key=value` strings.
        recipe: The dataclass of recipes, whose annotations say which keys hold text.

    Raises:
        ValueError: If a word has another form, or sets a key inside a value that is not a group.
    """
    pairs = [_split(override) for override in overrides]
    options = _options(values, pairs)
    for key, text in pairs:
        names = re.sub(r"\[([^\]]*)\]", r".\1", key).split(".")
        group = values
        for depth, name in enumerate(names[:-1], start=1):
            if group.get(name) is None:
                group[name] = {}
            group = group[name]
            if not isinstance(group, dict):
                raise ValueError(
                    f"{key}={text} sets a key of {'.'.join(names[:depth])}, which holds {group!r}, not a group"
                )
        value = _value(_kind(recipe, names, options), key, text)
        if isinstance(value, dict) and isinstance(group.get(names[-1]), dict):
            _merge(group[names[-1]], value)
        else:
            group[names[-1]] = value


def _split(override: str) -> tuple[str, str]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"an override must have the form key=value, such as train.steps=100, got {override!r}")
    return key, text


def _options(values: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> Any:
    """The class of the options of the method that the overrides select; Any if there is no such method."""
    method = values.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    for key, text in pairs:
        if key == "method.name":
            name = text
        elif key == "method" and isinstance(group := _yaml(key, text), dict):
            name = group.get("name", name)
    try:
        return find(DISTILLERS, name).Options if isinstance(name, str) else Any
    except ValueError:
        return Any  # reported when the recipe is checked


def _kind(recipe: type, names: Sequence[str], options: Any) -> Any:
    """The annotation of a key; Any for keys that do not exist."""
    if names[0] == "method" and len(names) > 1:
        if names[1:] == ["name"]:
            return str | None
        kind, names = options, names[1:]
    else:
        kind = recipe
    for name in names:
        if is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(name, Any)
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        else:
            return Any
    return kind


def _value(kind: Any, key: str, text: str) -> Any:
    optional = typing.get_origin(kind) in (types.UnionType, typing.Union)
    inner = next((a for a in typing.get_args(kind) if a is not types.NoneType), Any) if optional else kind
    if inner is str or typing.get_origin(inner) is Literal:
        return None if optional and text == "null" else text
    return _yaml(key, text)


def _yaml(key: str, text: str) -> Any:
    try:
        return parse_value(text)
    except ValueError as error:
        raise ValueError(f"{key} must be a YAML value, got {text!r}: {error}") from error


def _merge(into: dict[Any, Any], values: Mapping[Any, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
