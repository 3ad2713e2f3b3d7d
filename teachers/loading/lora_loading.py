"""Loading fine-tunes into a pipeline as stock diffusers does, with errors for everything that it leaves out."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_log
from torch import nn

from teachers.loading.load_errors import loading_errors
from teachers.loading.location import INDEX
from teachers.loading.lora_checks import ADAPTER, conversion_problem, layer_problem, takes_lora
from teachers.loading.lora_files import peft_settings, read_lora
from teachers.loading.sizes import check_configs
from teachers.loading.source import TEXT_COMPONENTS
from teachers.loading.weights import check_finite, load_network, weight_files
from teachers.support.errors import is_foreign, is_sentence, reason
from teachers.support.json_files import read_json
from teachers.support.private_api import lora_components
from teachers.support.regular import check_special
from teachers.support.text import printable


def import_peft() -> Any:
    """The package peft, which is an extra.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ValueError('teacher.loras needs the package peft: pip install -e ".[lora]"') from error


def load_lora(pipeline: Any, file: Path, network: str, values: bool = True) -> set[str]:
    """Load a LoRA file into a pipeline, which may be on the meta device, as stock diffusers does.

    Args:
        pipeline: The pipeline; afterwards it has the adapter `ADAPTER`.
        file: The .safetensors file.
        network: Name of the pipeline's denoising network.
        values: Whether the values in the layers are compared with those of the file; the meta device has shapes only.

    Returns:
        The names of the components that have the adapter.

    Raises:
        ValueError: If the file has a key that no layer takes, a layer of another shape, or a layer with a part only.
    """
    name = type(pipeline).__name__
    if not takes_lora(pipeline, network):
        raise ValueError(f"teacher.loras must be empty for a {name}, which diffusers cannot load LoRA files into")
    tensors = read_lora(file)
    import_peft()
    try:
        with _without_warnings():
            state = _load(pipeline, file, network, tensors)
            left_out = _left_out_problem(pipeline, file, tensors)
    except BaseException as error:
        if not is_foreign(error) or is_sentence(error):
            raise
        raise ValueError(
            f"the LoRA file {file} does not fit the {name} of the teacher: {' '.join(reason(error).split())[:300]}"
        ) from error
    found = _adapters(pipeline)
    problem = layer_problem(tensors, state, found, values) or left_out
    if problem is not None:
        raise ValueError(f"the LoRA file {file} does not fit the {name} of the teacher: {problem}")
    return {component for component, part in found.items() if part}


def _left_out_problem(pipeline: Any, file: Path, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """What is wrong with a file of which diffusers' converter leaves tensors out."""
    if peft_settings(file) is not None:  # no converter reads it
        return None
    options = _converter_options(pipeline)
    return conversion_problem(tensors, lambda numbered: type(pipeline).lora_state_dict(numbered, **options))


def _load(pipeline: Any, file: Path, network: str, stored: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Load a file with diffusers' own functions; returns the tensors that must be in layers afterwards."""
    if (settings := peft_settings(file)) is not None:  # what peft's own save_pretrained writes, for the network alone
        tensors = {key.removeprefix("base_model.model."): value for key, value in stored.items()}
        pipeline.components[network].load_lora_adapter(
            dict(tensors), prefix=None, adapter_name=ADAPTER, metadata=dict(settings), low_cpu_mem_usage=True
        )
        return tensors
    source: dict[str, Any] = {"weight_name": file.name, "local_files_only": True, "use_safetensors": True}
    found: Any = type(pipeline).lora_state_dict(str(file.parent), **source, **_converter_options(pipeline))
    with _text_encoder_adapters(pipeline):
        pipeline.load_lora_weights(str(file.parent), adapter_name=ADAPTER, low_cpu_mem_usage=True, **source)
    state: Mapping[str, torch.Tensor] = found[0] if isinstance(found, tuple) else found
    return state


def _converter_options(pipeline: Any) -> dict[str, Any]:
    unet = pipeline.components.get("unet")
    return {} if unet is None else {"unet_config": unet.config}


@contextmanager
def _text_encoder_adapters(pipeline: Any) -> Iterator[None]:
    """A context in which peft itself adds adapters to text encoders: transformers refuses most versions of peft."""
    encoders = [pipeline.components.get(name) for name in lora_components(pipeline) if name.startswith("text_encoder")]
    encoders = [encoder for encoder in encoders if encoder is not None]
    for encoder in encoders:
        encoder.load_adapter = partial(_add_adapter, encoder)
    try:
        yield
    finally:
        for encoder in encoders:
            del encoder.load_adapter


def _add_adapter(
    network: Any, adapter_name: str, adapter_state_dict: Mapping[str, torch.Tensor], peft_config: Any, **options: Any
) -> None:
    peft = import_peft()
    peft.inject_adapter_in_model(peft_config, network, adapter_name, **options)
    network.peft_config = {adapter_name: peft_config}
    peft.set_peft_model_state_dict(network, dict(adapter_state_dict), adapter_name, **options)


def _adapters(pipeline: Any) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of the adapter in each component that can have one."""
    parts = {name: pipeline.components.get(name) for name in lora_components(pipeline)}
    return {
        name: {key: value.detach() for key, value in part.state_dict().items() if ADAPTER in key.split(".")}
        for name, part in parts.items()
        if isinstance(part, nn.Module)
    }


@contextmanager
def _without_warnings() -> Iterator[None]:
    """A context without diffusers' warnings about unused keys, which are errors here."""
    level = diffusers_log.get_verbosity()
    diffusers_log.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_log.set_verbosity(level)


def tuned_networks(pipeline: Any, folder: Path, network: str, device: str | None = None) -> dict[str, nn.Module]:
    """The denoising network of a fine-tuned folder, and the text encoders that it has.

    Args:
        pipeline: The pipeline whose networks they replace.
        folder: A pipeline folder, or the folder of a network.
        network: Name of the pipeline's denoising network.
        device: "meta": only names and shapes are read.

    Returns:
        The networks in float32 by component name.

    Raises:
        ValueError: If a network of the folder is another one than the pipeline's, or a configuration cannot be used.
    """
    whole = (folder / INDEX).is_file()
    check_special(folder)
    check_configs(folder)
    names = [name for name, part in pipeline.components.items() if isinstance(part, nn.Module)]
    names = [name for name in names if name == network or (whole and name.startswith(TEXT_COMPONENTS))]
    found = {name: folder / name if whole else folder for name in names}
    found = {name: at for name, at in found.items() if name == network or weight_files(at)[1]}
    tuned: dict[str, nn.Module] = {}
    for name, at in found.items():
        own = pipeline.components[name]
        config = read_json(at / "config.json", constants=True) if (at / "config.json").is_file() else {}
        stored = config.get("_class_name") or config.get("architectures")
        stored = stored[0] if isinstance(stored, list) and stored else stored
        if stored != type(own).__name__:
            raise ValueError(f"{at} must be a {type(own).__name__}, the {name} of the teacher, got {printable(stored)}")
        with loading_errors(str(at)):
            tuned[name] = load_network(type(own), at, torch.float32, device=device)
        shapes, expected = ({k: v.shape for k, v in part.state_dict().items()} for part in (tuned[name], own))
        if shapes != expected:
            other = next(k for k in {**expected, **shapes} if shapes.get(k) != expected.get(k))
            raise ValueError(f"{at} must have the layers of the {name} of the teacher, but {other} differs")
        if device is None:
            check_finite(at, tuned[name])
    return tuned
