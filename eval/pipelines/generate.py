"""Calls any diffusers pipeline in the same way: equal prompts and equal noise.

The signature of a pipeline's `__call__` determines its inputs: prompts and latents for text-to-image pipelines, class
labels for `DiTPipeline`, neither for `DDPMPipeline`; a teacher family can declare other names of arguments. Each sample
has its own random generators, so its noise depends neither on the batch size nor on the number of steps.
"""

import hashlib
import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from eval.pipelines.networks import Pipeline, network, network_config
from eval.pipelines.seeds import LATENTS, NOISE, sample_seed
from eval.pipelines.signatures import argument, check_call, source_names
from teachers.loading import registry
from teachers.media import Image

EACH = ("negative_prompt", "lyrics")  # arguments that pipelines take as one string, or as one for each prompt


def generators(indices: Sequence[int], seed: int, stream: str) -> list[torch.Generator]:
    """One CPU generator per sample.

    Args:
        indices: The numbers of the samples.
        seed: The comparison's seed.
        stream: The name of an independent random stream.
    """
    return [torch.Generator().manual_seed(sample_seed(i, seed, stream)) for i in indices]


def latent_shape(pipe: Pipeline, call: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """(channels, height, width) of the latents of images; None for other media and packed latents.

    Pipelines then draw their noise themselves, with a generator for each sample.
    """
    family = registry.family_of_class(type(pipe))
    if family is not None and family.medium_class is not Image:
        return None
    config = network_config(pipe)
    size, factor = config.get("sample_size"), getattr(pipe, "vae_scale_factor", 1)
    if size is None or "in_channels" not in config:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    defaults = inspect.signature(type(pipe).__call__).parameters

    def side(name: str, usual: int) -> int:
        pixels = call.get(name, defaults[name].default if name in defaults else None)
        return int(pixels) // factor if isinstance(pixels, int | float) else int(usual)

    channels = int(config["in_channels"]) - (0 if family is None else family.source_channels)
    return channels, side("height", height), side("width", width)


def arguments(
    pipe: Pipeline,
    call: Mapping[str, Any],
    prompts: Sequence[str] | None,
    indices: Sequence[int],
    seed: int = 0,
    stream: str = "samples",
    sources: torch.Tensor | None = None,
) -> dict[str, Any]:
    """The call arguments that generate a batch of samples.

    Args:
        pipe: The pipeline.
        call: Its call arguments apart from prompts and noise.
        prompts: A prompt for each sample, or None.
        indices: The numbers of the samples, which determine their noise.
        seed: The comparison's seed.
        stream: The name of an independent random stream.
        sources: A source image for each sample, (B, 3, H, W) in [-1, 1], or (B, 4, H, W) with a mask; None for
            pipelines without source images.

    Raises:
        ValueError: See `check_call` and `source_arguments`.
    """
    kind = type(pipe)
    check_call(kind, call, prompts is not None)
    count = len(indices)
    usual: dict[str, Any] = {"generator": generators(indices, seed, f"{stream}/{NOISE}")}
    if argument(kind, "prompt"):
        usual["prompt"] = list(prompts or [])
    elif argument(kind, "class_labels"):
        classes = _classes(pipe)
        usual["class_labels"] = (
            [i % classes for i in indices] if prompts is None else [_label(pipe, prompt) for prompt in prompts]
        )
        usual["batch_size"] = count  # of ConsistencyModelPipeline
    else:
        usual["batch_size"] = count
    shape = latent_shape(pipe, call) if argument(kind, "latents") else None
    if shape is not None:
        noise = [torch.randn(shape, generator=g) for g in generators(indices, seed, f"{stream}/{LATENTS}")]
        parameter = next(network(pipe).parameters())
        usual["latents"] = torch.stack(noise).to(parameter.device, parameter.dtype)
    usual["output_type"] = output_type(kind)
    out = dict(call) | {own: value for name, value in usual.items() if (own := argument(kind, name)) is not None}
    out |= source_arguments(kind, sources)
    for name in EACH:
        if isinstance(out.get(name), str):
            out[name] = [out[name]] * count
    return out


def own_lists(call: Mapping[str, Any]) -> dict[str, Any]:
    """Call arguments with lists of their own, because some pipelines change those that they receive, as Z-Image's."""
    return {name: list(value) if isinstance(value, list) else value for name, value in call.items()}


def output_type(kind: type[DiffusionPipeline]) -> str:
    """The `output_type` with which pipelines of a class return samples in the judged range."""
    family = registry.family_of_class(kind)
    return ("pt" if family is None else family.output_type) if argument(kind, "prompt") else "np"


def source_arguments(kind: type[DiffusionPipeline], sources: torch.Tensor | None) -> dict[str, Any]:
    """The call arguments with source images in [0, 1] and their masks; empty for pipelines without source images.

    Args:
        kind: The pipeline class.
        sources: See `arguments`.

    Raises:
        ValueError: If the pipeline needs source images and there are none.
    """
    names = source_names(kind)
    if not names:
        return {}
    if sources is None:
        raise ValueError(f"{kind.__name__} needs a source image for each prompt")
    return dict(zip(names, (sources[:, :3] / 2 + 0.5, sources[:, 3:]), strict=False))


def largest_batch(pipe: Pipeline, wanted: int) -> int:
    """How many samples to generate at once: one if the pipeline would pad the prompts of a batch to the longest."""
    family = registry.family_of_class(type(pipe))
    return 1 if family is not None and family.pads_prompts else wanted


def _classes(pipe: Pipeline) -> int:
    """The number of classes of a class-conditional pipeline."""
    config = network_config(pipe)
    known = (config.get(name) for name in ("num_embeds_ada_norm", "num_class_embeds", "num_classes"))
    return next((int(number) for number in known if number), len(getattr(pipe, "labels", ())) or 1000)


def _label(pipe: Pipeline, prompt: str) -> int:
    """The class number of a prompt: a number, or a name that the pipeline knows."""
    classes, text = _classes(pipe), prompt.strip()
    if text.isdecimal():
        label: int | None = int(text)
    elif hasattr(pipe, "get_label_ids") and not hasattr(pipe, "labels"):
        label = pipe.get_label_ids([text])[0]
    else:
        label = getattr(pipe, "labels", {}).get(text)
    if label is None or not 0 <= label < classes:
        raise ValueError(
            f"a prompt for this {type(pipe).__name__} must be a number from 0 to {classes - 1} or the name of a class, "
            f"got {prompt!r}"
        )
    return int(label)


def cuda_devices() -> list[int]:
    """The number of the current GPU, for `torch.random.fork_rng`; empty without a GPU."""
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


@contextmanager
def seeded(indices: Sequence[int], seed: int = 0, stream: str = "samples") -> Iterator[None]:
    """A context in which the global random generators depend on a batch only; afterwards they are as before.

    Some pipelines draw noise from the global generators of torch, NumPy or Python, whatever generator they are given.

    Args:
        indices: The numbers of the batch's samples.
        seed: The comparison's seed.
        stream: The name of an independent random stream.
    """
    digest = hashlib.sha256(f"{seed}/{stream}/global/{','.join(map(str, indices))}".encode()).digest()
    number = int.from_bytes(digest[:4], "little")
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(cuda_devices()):
        torch.manual_seed(number)
        np.random.seed(number)
        random.seed(number)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
