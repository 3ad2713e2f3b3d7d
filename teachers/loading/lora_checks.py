"""Checks that all tensors of a LoRA file are in layers, and that nothing else is: diffusers warns or says nothing."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.loaders import PeftAdapterMixin
from diffusers.loaders.lora_base import LoraBaseMixin
from torch import Tensor

from teachers.support.files import sha256, tensor_bytes
from teachers.support.text import first_names

ADAPTER = "fine_tune"  # the name of the adapter that holds a LoRA file
SHOWN = 3  # keys in an error message
ADVICE = "use a LoRA file of this model"
ALPHA = ".alpha"
DOWN = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".lora_A.default.weight")

Layers = Mapping[str, Mapping[str, Tensor]]


def takes_lora(pipeline: Any, network: str) -> bool:
    """Whether diffusers can load LoRA files into the component `network` of a pipeline."""
    return isinstance(pipeline, LoraBaseMixin) and isinstance(pipeline.components[network], PeftAdapterMixin)


def layer_problem(stored: Mapping[str, Tensor], state: Mapping[str, Tensor], found: Layers, values: bool) -> str | None:
    """What is wrong with adapters in layers, or None.

    Args:
        stored: The tensors of the file.
        state: The same in diffusers' names, which must be in layers.
        found: The tensors of the adapters by component.
        values: Whether values are compared; the meta device has shapes only.
    """
    layers = {f"{component}.{key}": value for component, part in found.items() for key, value in part.items()}
    if not layers:
        return f"no layer takes {first_names(stored, SHOWN)}; {ADVICE}"
    unused, unfilled = _unmatched(state, layers, values)
    if unused:
        return f"no layer takes {first_names(unused, SHOWN)}; {ADVICE}"
    if unfilled:
        return f"it has no tensor for {first_names(unfilled, SHOWN)}; get the complete file"
    return None


def _unmatched(state: Mapping[str, Tensor], layers: Mapping[str, Tensor], values: bool) -> tuple[list[str], list[str]]:
    """The keys of `state` that are in no layer, and the keys of layers that have no value of it.

    Keys match by name, or, for other names, by value.
    """
    names = {key: ".".join(part for part in key.split(".") if part != ADAPTER) for key in layers}
    marks = {key: _mark(value, values) for key, value in layers.items()}
    wanted = {key: _mark(value, values) for key, value in state.items()}
    same = {name for key, name in names.items() if wanted.get(name) == marks[key]}
    others = Counter(marks[key] for key, name in names.items() if name not in same)
    unused = [key for key, mark in wanted.items() if key not in same and not _take(others, mark)]
    return unused, [names[key] for key, mark in marks.items() if names[key] not in same and _take(others, mark)]


def _mark(value: Tensor, values: bool) -> tuple[tuple[int, ...], str]:
    if value.is_meta or not values:
        return tuple(value.shape), ""
    return tuple(value.shape), sha256([tensor_bytes(value.detach().float())])


def _take(counts: Counter[Any], item: Any) -> bool:
    counts[item] -= 1
    return counts[item] >= 0


def conversion_problem(stored: Mapping[str, Tensor], convert: Callable[[dict[str, Tensor]], Any]) -> str | None:
    """What is wrong with a file of which a converter to diffusers' names leaves tensors out, or None.

    Converters rename, cut, join and scale tensors. Every tensor is replaced by one of a single value, its number, and
    all alphas by ranks, which do not scale: a number that is nowhere in the result was left out.

    Args:
        stored: The tensors of the file.
        convert: diffusers' converter.
    """
    parts = [name for name, value in stored.items() if value.numel() > 1 and not name.endswith(ALPHA)]
    numbers = {name: n for n, name in enumerate(parts, start=1) if "lokr_" not in name}  # products are computed of LoKr
    numbered = {
        name: torch.full(value.shape, float(numbers[name])) if name in numbers else _as_rank(name, stored)
        for name, value in stored.items()
    }
    result: Any = convert(numbered)
    state = result[0] if isinstance(result, tuple) else result
    seen = torch.zeros(len(parts) + 1, dtype=torch.bool)
    for value in state.values():
        seen |= value.clamp(0, len(parts)).long().flatten().bincount(minlength=len(seen)) > 0
    left_out = [name for name, number in numbers.items() if not seen[number]]
    return f"diffusers leaves out {first_names(left_out, SHOWN)}; {ADVICE}" if left_out else None


def _as_rank(name: str, stored: Mapping[str, Tensor]) -> Tensor:
    """The rank of a layer in place of its alpha; other tensors are unchanged."""
    layer = name.removesuffix(ALPHA)
    down = next((stored[layer + ending] for ending in DOWN if layer + ending in stored), None)
    if layer == name or down is None:
        return stored[name]
    return torch.full(stored[name].shape, float(down.shape[0]))
