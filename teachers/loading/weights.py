"""Loading the networks of a pipeline strictly: the parameters of each are exactly those in its files.

`from_pretrained` only warns about parameters that a file lacks, which are random then, and about those that the network
lacks, such as the layers of adapters. Here both are errors. Renamed keys of older files, tied weights and buffers are
as the libraries themselves treat them.
"""

import logging
import math
import pickle
import re
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import ModelMixin
from safetensors import safe_open
from torch import nn

from teachers.loading.components import OPTIONAL, installed_class
from teachers.loading.location import INDEX
from teachers.loading.notices import without_notices
from teachers.loading.sizes import check_memory, check_sizes
from teachers.loading.trust import check_no_adapter
from teachers.support.json_files import read_json
from teachers.support.limits import TABLE_BYTES
from teachers.support.listing import visible
from teachers.support.text import first_names

logger = logging.getLogger(__name__)
# transformers replaces functions of its classes while it loads a model. If two threads do so at once, the replacements
# stay, and later models have no tied weights.
LOADING = threading.RLock()
# Names of weights: diffusion_pytorch_model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, and an older order.
WEIGHTS = re.compile(
    r"^(?:diffusion_pytorch_model|model|pytorch_model)"
    r"(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?(?:\.(?P<older>[\w-]+?))?\.(?P<kind>safetensors|bin)$"
)
SHOWN = 3  # keys of each kind in an error message


def weight_files(folder: Path, kind: str = "safetensors") -> tuple[str | None, list[Path]]:
    """The files of a component's weights.

    Args:
        folder: The component's folder.
        kind: Ending of the files.

    Returns:
        The variant, such as "fp16", or None; and its files, which may be none.

    Raises:
        ValueError: If there are no plain weights but several variants.
    """
    variants: dict[str | None, list[Path]] = {}
    for file in visible(folder, f"*.{kind}"):
        if match := WEIGHTS.match(file.name):
            variants.setdefault(match["variant"] or match["older"], []).append(file)
    if None in variants or not variants:
        return None, variants.get(None, [])
    if len(variants) > 1:
        names = ", ".join(sorted(str(name) for name in variants))
        raise ValueError(f"{folder} must have weights without a variant, or one variant, got {names}")
    return next(iter(variants.items()))


def check_shards(folder: Path, files: Collection[Path]) -> None:
    """Check that each shard has the keys that its index lists, because diffusers takes the keys from the index.

    Args:
        folder: The component's folder.
        files: The .safetensors files of its weights.

    Raises:
        ValueError: If a key is in another shard than the index says, or only in one of both.
    """
    listed: set[tuple[str, str]] = set()
    names = {file.name for file in files}
    for index in visible(folder, "*.safetensors.index*.json"):
        entries = read_json(index, TABLE_BYTES)["weight_map"].items()
        listed |= {(key, file) for key, file in entries} if names.intersection(dict(entries).values()) else set()
    if not listed:
        return
    stored = set()
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            stored |= {(key, file.name) for key in tensors.keys()}  # noqa: SIM118
    absent = {file for _, file in listed} - names
    if absent:
        raise ValueError(
            f"{folder} lacks {first_names(sorted(absent), SHOWN)}, which the index of its weights lists; get the "
            "complete files"
        )
    if differing := {key for key, _ in listed ^ stored}:
        raise ValueError(
            f"the weights in {folder} are not those of their index: they differ in "
            f"{first_names(sorted(differing), SHOWN)}; get the complete files and save the pipeline again"
        )


def network_classes(folder: Path, owners: Iterable[type[Any]] = ()) -> dict[str, Any]:
    """The classes of a pipeline's networks by component name.

    Args:
        folder: The pipeline's folder.
        owners: Classes of installed packages whose networks are included; see `check_components`.

    Raises:
        ValueError: If diffusers or transformers has no such class.
    """
    classes: dict[str, Any] = {}
    for name, entry in read_json(folder / INDEX, constants=True).items():
        kind = None if name in OPTIONAL else installed_class(entry, owners)
        if kind is not None and issubclass(kind, ModelMixin | transformers.PreTrainedModel):
            classes[name] = kind
    return classes


def load_networks(
    folder: Path, skip: Collection[str], dtype: Any, pickles: bool = False, owners: Iterable[type[Any]] = ()
) -> dict[str, nn.Module]:
    """Load the networks of a pipeline in a folder.

    Args:
        folder: The pipeline's folder.
        skip: Names of components that are not loaded.
        dtype: Precision of the weights; a dict by component name, with "default", is allowed.
        pickles: Whether .bin files are read where there are no .safetensors files.
        owners: Classes of installed packages whose networks are loaded too.

    Returns:
        The networks by component name, in eval mode.

    Raises:
        ValueError: If a network's parameters are not exactly those of its files, or are not finite.
    """
    networks: dict[str, nn.Module] = {}
    classes = {name: kind for name, kind in network_classes(folder, owners).items() if name not in skip}
    own_dtype: dict[str, Any] = {
        name: dtype.get(name, dtype["default"]) if isinstance(dtype, dict) else dtype for name in classes
    }
    check_memory(folder, {file: own_dtype[name] for name in classes for file in weight_files(folder / name)[1]})
    for name, kind in classes.items():
        if (folder / name).is_dir():
            networks[name] = load_network(kind, folder / name, own_dtype[name], pickles)
            check_finite(folder / name, networks[name])
    return networks


def load_network(
    kind: Any, folder: Path, dtype: torch.dtype = torch.float32, pickles: bool = False, device: str | None = None
) -> nn.Module:
    """Load one network, without a check of its values; see `load_networks`.

    On the device "meta" names and shapes are checked, and no values are read.
    """
    variant, files = weight_files(folder)
    safetensors = bool(files) or not pickles
    if not safetensors:
        variant, files = weight_files(folder, "bin")
    else:
        check_shards(folder, files)
    check_no_adapter(folder)
    if variant and device != "meta":
        logger.warning("%s has only weights of the variant %s, which are loaded", folder, variant)
    # transformers lists tensors of other shapes, diffusers raises an error with the first one.
    options: dict[str, Any] = (
        {"ignore_mismatched_sizes": True} if issubclass(kind, transformers.PreTrainedModel) else {}
    )
    options |= {"variant": variant, "use_safetensors": safetensors, "device_map": device}
    try:
        with without_notices(), LOADING:
            network, info = kind.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, trust_remote_code=False, **options
            )
    except (RuntimeError, ValueError, pickle.UnpicklingError) as error:
        first = " ".join(str(error).split()).split(". ")[0]
        raise ValueError(f"the weights in {folder} are not those of a {kind.__name__}: {first}") from error
    check_keys(folder, network, info)
    eval_network: nn.Module = network.eval()
    return eval_network


def check_keys(folder: Path, network: nn.Module, info: dict[str, Any]) -> None:
    """Check that files and network had the same parameters.

    Args:
        folder: The component's folder.
        network: The loaded network.
        info: What `from_pretrained` returns with `output_loading_info`.

    Raises:
        ValueError: If they had not; it names the keys.
    """
    buffers = {name.rsplit(".", 1)[-1] for name, _ in network.named_buffers()} | {"position_ids"}
    known = network.state_dict().keys()  # with both names of tied weights
    extra = [key for key in info["unexpected_keys"] if key not in known and key.rsplit(".", 1)[-1] not in buffers]
    problems = {
        "lack": list(info["missing_keys"]),
        "also have": extra,
        "have another shape of": [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]],
        "could not be read:": list(info.get("error_msgs", [])),
    }
    found = [f"{verb} {first_names(sorted(keys), SHOWN)}" for verb, keys in problems.items() if keys]
    if found:
        adapters = any("lora_" in key or "base_layer" in key for key in extra)
        advice = "merge or unload the adapters" if adapters else "get the complete files"
        raise ValueError(
            f"the weights in {folder} are not those of its {type(network).__name__}: they {' and '.join(found)}; "
            f"{advice} and save the pipeline again"
        )


def check_finite(source: Path, network: nn.Module) -> None:
    """Check that all parameters are finite numbers and were loaded.

    Raises:
        ValueError: With the name of a parameter that is not.
    """
    absent = [name for name, value in network.named_parameters() if value.is_meta]
    if absent:
        missing = first_names(sorted(absent), SHOWN)
        raise ValueError(f"{source} has no weights for {missing} of its {type(network).__name__}")
    for name, value in network.named_parameters():
        _check_values(source, name, value.detach())


def check_stored_values(source: Path, files: Iterable[Path]) -> None:
    """`check_finite` for the tensors in .safetensors files, one at a time."""
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                value = tensors.get_tensor(name)
                if value.is_floating_point():
                    _check_values(source, name, value)


def _check_values(source: Path, name: str, value: torch.Tensor) -> None:
    # The sum needs no second copy of the weights; it may overflow, so a bad one is checked again.
    if not math.isfinite(value.sum(dtype=torch.float32)) and not bool(value.isfinite().all()):
        raise ValueError(f"{source} has values of {name} that are infinite or not a number in {value.dtype}")


def check_networks(folder: Path, owners: Iterable[type[Any]] = ()) -> list[str]:
    """Check a pipeline's networks against the names, shapes and values in their files, as loading them does.

    One tensor at a time is in memory. Components without .safetensors files are left out.

    Args:
        folder: The pipeline's folder.
        owners: Classes of installed packages whose networks are checked too.

    Returns:
        The variants that would be loaded, such as "unet fp16".

    Raises:
        ValueError: If a network does not fit its files, or a value is not finite.
    """
    variants = []
    classes = network_classes(folder, owners)
    check_sizes(folder, classes)
    for name, kind in classes.items():
        variant, files = weight_files(folder / name)
        if files:
            with _without_progress_bars():
                load_network(kind, folder / name, device="meta")
            check_stored_values(folder / name, files)
        if variant:
            variants.append(f"{name} {variant}")
    return variants


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
