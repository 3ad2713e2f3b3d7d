"""Bytes that identify the content of any value, for `teachers.support.keys`.

Objects are described by what determines their results: networks by class, configuration, weights, buffers and plain
settings; pipelines by class, configuration and components; schedulers by class, configuration and noise table;
tokenizers by vocabulary and settings. Devices, locations and what calls leave behind are left out.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence, Set
from enum import Enum
from pathlib import Path
from types import BuiltinFunctionType, CellType, CodeType, EllipsisType, FunctionType, MethodType, ModuleType
from typing import Any

from teachers.support.contents import content
from teachers.support.files import sha256, tensor_bytes

Update = Callable[[Any], None]
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")
# Attributes and configuration entries that do not change results: modes, locations, versions.
LEFT_OUT = {"training", "gradient_checkpointing", "device", "name_or_path", "transformers_version"}
PLAIN = (type(None), EllipsisType, bool, int, float, complex, str)


def feed(value: Any, update: Update, seen: dict[int, tuple[int, Any]]) -> None:
    """Pass bytes to `update` that identify `value`; equal values give equal bytes in every process.

    Args:
        value: See `teachers.support.keys.key`.
        update: Receives the bytes in order.
        seen: Objects with attributes that were passed already, by id; a repeated one is replaced by its number.

    Raises:
        TypeError: If a value has no content that can be hashed.
    """
    if isinstance(value, Enum):
        return _text("enum", f"{_name(type(value))}.{value.name}", update)
    if isinstance(value, PLAIN):
        return _text(type(value).__name__, repr(value), update)
    if isinstance(value, bytes | bytearray | memoryview):
        return _block("bytes", bytes(value), update)
    if isinstance(value, Path):
        return _text("path", content(value), update)
    if isinstance(value, type):
        return _text("class", _name(value), update)
    if isinstance(value, ModuleType):
        return _text("module", value.__name__, update)
    if isinstance(value, Mapping):
        named = all(isinstance(name, str) for name in value)
        items = sorted(value.items(), key=(lambda item: item[0]) if named else (lambda item: _sort_key(item[0])))
        return _all("mapping", [part for item in items for part in item], update, seen)
    if isinstance(value, Set):
        return _all("set", sorted(value, key=_sort_key), update, seen)
    if isinstance(value, Sequence):  # tuples and lists are one: JSON does not tell them apart
        return _all("sequence", value, update, seen)
    return _object(value, update, seen)


def _object(value: Any, update: Update, seen: dict[int, tuple[int, Any]]) -> None:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        _text("tensor", f"{value.dtype} {tuple(value.shape)}", update)
        return None if value.is_meta else update(tensor_bytes(value))
    if isinstance(value, np.ndarray | np.generic):
        _text("array", f"{value.dtype.str} {value.shape}", update)
        return feed(value.tolist(), update, seen) if value.dtype.hasobject else update(value.tobytes())
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return _text("torch", repr(value), update)
    if isinstance(value, torch.device):
        return _text("torch", "device", update)
    if isinstance(value, torch.Generator):
        return feed(value.get_state(), update, seen)
    if isinstance(value, functools.partial):
        return _all("partial", [value.func, value.args, value.keywords], update, seen)
    if isinstance(value, MethodType):
        return _all("method", [value.__func__, value.__self__], update, seen)
    if isinstance(value, FunctionType):
        parts = [value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, value.__closure__]
        return _all("function", parts, update, seen)
    if isinstance(value, CellType):
        return feed(value.cell_contents, update, seen)
    if isinstance(value, CodeType):
        return _all("code", [value.co_code, value.co_names, value.co_consts], update, seen)
    if isinstance(value, BuiltinFunctionType):
        return _text("builtin", f"{value.__module__}.{value.__qualname__}", update)
    if id(value) in seen:
        return _text("seen", str(seen[id(value)][0]), update)
    seen[id(value)] = len(seen), value  # keeping the object alive keeps its id from being used again
    _text("object", _name(type(value)), update)
    feed(_described(value), update, seen)


def _described(value: Any) -> Any:
    """What identifies an object in addition to its class."""
    import torch

    if isinstance(value, torch.nn.Module):
        return [_module(name, part) for name, part in value.named_modules()] + [
            dict(value.named_parameters(remove_duplicate=False)),
            dict(value.named_buffers(remove_duplicate=False)),  # also those that are not saved
        ]
    if hasattr(value, "get_vocab"):
        return _tokenizer(value)
    config = _config(value)
    if config is not None and hasattr(value, "components"):  # a pipeline
        return [config, value.components, plain_attributes(value)]
    if config is not None:  # a scheduler; its timesteps are left out, because calls change them
        return [config, getattr(value, "alphas_cumprod", None)]
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(value, "to_dict"):  # processors of transformers
        return _without_left_out(value.to_dict())
    if hasattr(value, "__dict__"):
        return _without_left_out(vars(value))
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    if not slots:
        raise TypeError(f"a cache key cannot contain a {_name(type(value))}: its content is unknown")
    return {name: getattr(value, name, None) for name in slots}


def _module(name: str, part: Any) -> list[Any]:
    """A module's place, class, configuration and settings; other attributes only if no known library made them."""
    own = type(part).__module__.partition(".")[0] not in LIBRARIES
    attributes = {k: v for k, v in vars(part).items() if not k.startswith("_")} if own else plain_attributes(part)
    return [name, type(part), _config(part), _without_left_out(attributes)]


def _config(value: Any) -> dict[str, Any] | None:
    config: Any = getattr(value, "config", None)
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        return None
    # Private entries say where a configuration comes from, and which values are defaults in no fixed order.
    return {k: v for k, v in _without_left_out(config).items() if not str(k).startswith("_")}


def _without_left_out(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in LEFT_OUT}


def plain_attributes(value: Any) -> dict[str, Any]:
    """An object's public attributes that are numbers, strings, or lists and mappings of these."""
    public = {k: v for k, v in vars(value).items() if not k.startswith("_") and k not in LEFT_OUT}
    return {k: v for k, v in public.items() if _is_plain(v)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


def _tokenizer(value: Any) -> Any:
    """Vocabulary and settings; truncation and padding are those it was made with, because calls change them."""
    backend = getattr(value, "backend_tokenizer", None)
    rules = value.get_vocab() if backend is None else json.loads(backend.to_str())
    rules = {k: v for k, v in rules.items() if k not in ("truncation", "padding")}
    settings = {k: v for k, v in getattr(value, "init_kwargs", {}).items() if _is_plain(v) and k not in LEFT_OUT}
    names = ("model_max_length", "special_tokens_map", "extra_special_tokens")
    state = {name: str(getattr(value, name, None)) for name in names}
    return [json.dumps(rules, sort_keys=True), settings, state]


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _sort_key(value: Any) -> str:
    parts: list[bytes] = []
    feed(value, lambda part: parts.append(bytes(part)), {})
    return sha256(parts)


def _text(kind: str, text: str, update: Update) -> None:
    _block(kind, text.encode("utf-8", "surrogatepass"), update)


def _block(kind: str, data: bytes, update: Update) -> None:
    update(f"{kind} {len(data)}:".encode() + data)


def _all(kind: str, values: Sequence[Any], update: Update, seen: dict[int, tuple[int, Any]]) -> None:
    _text(kind, str(len(values)), update)
    for value in values:
        feed(value, update, seen)
