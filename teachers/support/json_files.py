"""JSON files that may come from strangers: of limited size and depth, without repeated keys, NaN and huge numbers."""

import json
import math
from pathlib import Path
from typing import Any

from teachers.support.limits import CONFIG_BYTES, Limit
from teachers.support.text import printable, read_text

MAX_DIGITS = 38  # of a whole number; tokenizers store 10^30 for "no limit"
MAX_DEPTH = 100


def read_json(file: Path, limit: Limit = CONFIG_BYTES, constants: bool = False) -> Any:
    """The value in a UTF-8 JSON file.

    Args:
        file: The file.
        limit: The largest size of the file in bytes.
        constants: Whether NaN and Infinity are allowed.

    Raises:
        ValueError: With the file's name, if it is too large or is not valid JSON (see `parse_json`).
        OSError: If it cannot be opened.
    """
    text = read_text(file, limit)
    try:
        return parse_json(text, constants)
    except ValueError as error:
        raise ValueError(f"{printable(file)} is not valid JSON: {error}") from error


def parse_json(text: str, constants: bool = False) -> Any:
    """The value in a JSON text.

    Args:
        text: The text.
        constants: Whether NaN and Infinity are allowed, which tables store for no value.

    Raises:
        ValueError: If it is not JSON, is nested more than `MAX_DEPTH` deep, or has a key twice in one object, a number
            that is too large, NaN or Infinity.
    """
    try:
        value = json.loads(text, **(HOOKS | {"parse_constant": float} if constants else HOOKS))
    except RecursionError as error:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from error
    except ValueError as error:
        raise ValueError(printable(error)) from error
    _check_depth(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {printable(key[:100])!r} is repeated")
        values[key] = value
    return values


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is larger than every number of 64 bits")
    return value


def _integer(text: str) -> int:
    digits = len(text.lstrip("-"))
    if digits > MAX_DIGITS:
        raise ValueError(f"a whole number must have at most {MAX_DIGITS} digits, got {digits}")
    return int(text)


HOOKS: dict[str, Any] = {
    "object_pairs_hook": _object,
    "parse_constant": _constant,
    "parse_float": _float,
    "parse_int": _integer,
}


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        level = [
            item
            for part in level
            if isinstance(part, dict | list)
            for item in (part.values() if isinstance(part, dict) else part)
        ]
