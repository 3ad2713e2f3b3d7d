"""Bounds on a pipeline's configuration, checked before anything of its size is allocated.

`check_configs` reads the JSON files of a folder. `check_sizes` builds each network on the meta device, where tensors
have no data, and stops as soon as it has more parameters or modules than any real network.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from teachers.loading.location import INDEX
from teachers.support.json_files import read_json
from teachers.support.limits import MODULES, PARAMETERS, SIDE, TABLE_BYTES
from teachers.support.listing import visible
from teachers.support.text import one_line, printable

TABLES = ("tokenizer.json", "vocab.json", "added_tokens.json")  # and indexes of sharded weights
MAX_INT = 2**31 - 1
MAX_TIMESTEPS = 1_000_000  # and every other number of a scheduler
MAX_REPEATED = 10_000
REPEATED = ("layer", "block", "depth", "heads", "repeat")  # parts of keys of numbers of layers, unless of "channels"
SIDES = ("sample_size", "pos_embed_max_size")
GIB = 2**30


def check_configs(folder: Path) -> None:
    """Check the sizes and the numbers of the JSON files of a pipeline's folder.

    Raises:
        ValueError: With the file, if it is too large, is not valid JSON, or has a number that no network has.
    """
    for file in visible(folder, "*.json", "*/*.json"):
        if not file.exists():  # a broken link: `check_trusted` reports it
            continue
        if file.name in TABLES or file.name.endswith(".index.json"):
            if file.stat().st_size > TABLE_BYTES.value:
                raise ValueError(f"{file} must have at most {TABLE_BYTES.value:,} bytes; {TABLE_BYTES.advice}")
            continue
        values = read_json(file, constants=True)
        if not isinstance(values, dict) and file.name in (INDEX, "config.json", "scheduler_config.json"):
            raise ValueError(f"{file} must be a JSON object, got {type(values).__name__}")
        if file.name in ("config.json", "scheduler_config.json"):
            _check_numbers(file, values, scheduler=file.name == "scheduler_config.json")


def _check_numbers(file: Path, values: Any, scheduler: bool, key: str = "") -> None:
    """Check every number in `values` by the key that it is under."""
    if isinstance(values, dict):
        for name, value in values.items():
            _check_numbers(file, value, scheduler, name)
    elif isinstance(values, list):
        for value in values:
            _check_numbers(file, value, scheduler, key)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        most, advice = _largest(key, scheduler)
        if isinstance(values, float) and (math.isnan(values) or (math.isinf(values) and not scheduler)):
            raise ValueError(f"{printable(key)} in {file} must be a finite number, got {values}")
        if abs(values) > most and math.isfinite(values) and (scheduler or isinstance(values, int)):
            raise ValueError(f"{printable(key)} in {file} must be at most {most:,}, got {values:.12g}{advice}")


def _largest(key: str, scheduler: bool) -> tuple[int, str]:
    """The largest number that may stand under a key, and how to allow more."""
    if scheduler:
        return MAX_TIMESTEPS, ""
    if key in SIDES:
        return SIDE.value, f"; {SIDE.advice}"
    repeated = any(part in key for part in REPEATED) and "channels" not in key
    return (MAX_REPEATED if repeated else MAX_INT), ""


def check_sizes(folder: Path, classes: dict[str, Any]) -> None:
    """Check the size of a pipeline's networks by their configurations.

    Args:
        folder: The pipeline's folder.
        classes: The classes of its networks by component name, from `teachers.loading.weights.network_classes`.

    Raises:
        ValueError: With the component, if it has more parameters or modules than `PARAMETERS` and `MODULES` allow, more
            parameters than its files have bytes, or cannot be built from its configuration.
    """
    for name, kind in classes.items():
        part = folder / name
        if not (part / "config.json").is_file():
            continue
        with bounded(part):
            network = build(kind, str(folder), name)
        size = sum(parameter.numel() for parameter in network.parameters())
        stored = sum(file.stat().st_size for file in visible(part, "*.safetensors", "*.bin"))
        if 0 < stored < size:
            raise ValueError(
                f"{part} describes a network of {size:,} parameters, but its weights have {stored:,} bytes; get the "
                "complete files"
            )


def build(kind: Any, source: str, name: str) -> nn.Module:
    """A component's network on the meta device, from its configuration.

    Args:
        kind: Its class.
        source: The pipeline's folder or Hub id.
        name: The component's name.
    """
    with torch.device("meta"):
        if issubclass(kind, ModelMixin):
            network: nn.Module = kind.from_config(kind.load_config(source, subfolder=name))
        else:
            network = kind(kind.config_class.from_pretrained(source, subfolder=name, trust_remote_code=False))
    return network


@contextmanager
def bounded(source: Path, problem: str = "a configuration that its class cannot be built from") -> Iterator[None]:
    """A context in which modules are built within the limits.

    Args:
        source: The component, for error messages.
        problem: What the component has if its class raises an error.

    Raises:
        ValueError: If they have more parameters or modules, or the classes raise an error.
    """
    counts = dict.fromkeys((PARAMETERS, MODULES), 0)

    def add(limit: Any, size: int) -> None:
        counts[limit] += size
        if counts[limit] > limit.value:
            kind = "parameters" if limit is PARAMETERS else "modules"
            raise UnusableConfiguration(
                f"{source} describes a network of more than {limit.value:,} {kind}; {limit.advice}"
            )

    def tensor(module: nn.Module, name: str, value: Tensor | None) -> None:
        add(PARAMETERS, 0 if value is None else value.numel())

    handles = [
        register_module_parameter_registration_hook(tensor),
        register_module_buffer_registration_hook(tensor),
        register_module_module_registration_hook(lambda module, name, child: add(MODULES, 1)),
    ]
    try:
        yield
    except UnusableConfiguration:
        raise
    except Exception as error:  # constructors raise many types for values that do not fit together
        reason = one_line(str(error)) or type(error).__name__
        raise UnusableConfiguration(f"{source} has {problem}: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()


class UnusableConfiguration(ValueError):
    """A component that is beyond the limits, or that its class cannot be built from."""


def check_memory(folder: Path, files: Mapping[Path, torch.dtype]) -> None:
    """Check that weights fit into this machine's memory, before they are read.

    Args:
        folder: The pipeline's folder, for the message.
        files: The .safetensors files, with the precision that each is loaded in.

    Raises:
        ValueError: If they are larger than the memory and the swap space.
    """
    needed = sum(stored_values(file) * dtype.itemsize for file, dtype in files.items())
    available = psutil.virtual_memory().total + psutil.swap_memory().total
    if needed > available:
        raise ValueError(
            f"the weights in {folder} must fit into the memory of this machine, {available / GIB:,.1f} GiB, got "
            f"{needed / GIB:,.1f} GiB"
        )


def stored_values(file: Path) -> int:
    """The number of values in a .safetensors file, from its header, which `check_weights` has checked."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(min(length, 2**27)))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
