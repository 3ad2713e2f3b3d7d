"""The networks of a loaded pipeline: which they are, their guidance, and how often they are evaluated."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from diffusers import ClassifierFreeGuidance
from torch import Tensor

from teachers.loading import registry

Pipeline: TypeAlias = Any  # a DiffusionPipeline; its components and arguments depend on its class


def network(pipe: Pipeline) -> Any:
    """The denoising network: the component that the pipeline's family names, or `transformer` or `unet`.

    Raises:
        ValueError: If the pipeline has no such component.
    """
    family = registry.family_of_class(type(pipe))
    names = ("transformer", "unet") if family is None else (family.network,)
    for name in names:
        found = pipe.components.get(name)
        if isinstance(found, torch.nn.Module):
            return found
    raise ValueError(f"{type(pipe).__name__} must have a {' or a '.join(names)} to be evaluated")


def networks(pipe: Pipeline) -> list[torch.nn.Module]:
    """The denoising network, and the one for low noise levels that Wan 2.2 has besides."""
    second = pipe.components.get("transformer_2")
    return [network(pipe), *([second] if isinstance(second, torch.nn.Module) else [])]


def has_guider(pipe: Pipeline) -> bool:
    """Whether a pipeline has its guidance scale in a guider, and not in its call."""
    return isinstance(pipe.components.get("guider"), ClassifierFreeGuidance)


def set_guidance(pipe: Pipeline, guidance: float) -> None:
    """Set the guidance scale of a pipeline that has a guider; the calls of others carry the scale."""
    if has_guider(pipe):
        pipe.register_modules(guider=pipe.guider.new(guidance_scale=guidance))


def network_config(pipe: Pipeline) -> Mapping[str, Any]:
    """The configuration of a pipeline's network by name; empty for a network without one."""
    config = getattr(network(pipe), "config", {})
    return config if isinstance(config, Mapping) else vars(config)


@dataclass
class Count:
    """Network evaluations, one for each element of the batch of a call."""

    evaluations: int = 0


@contextmanager
def count_evaluations(pipe: Pipeline) -> Iterator[Count]:
    """Count network evaluations inside the block; the doubled batch of classifier-free guidance counts twice."""
    count = Count()

    def hook(module: torch.nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        first = args[0] if args else kwargs.get("x")
        if isinstance(first, list):  # Z-Image takes a list of samples
            count.evaluations += len(first)
            return
        # The sample, since the positions of Flux and the prompts of AnimateDiff's frames have other numbers of rows.
        named = [kwargs[name] for name in ("hidden_states", "sample") if name in kwargs]
        values = (value for value in (*args, *named, *kwargs.values()) if isinstance(value, Tensor))
        count.evaluations += next((len(value) for value in values if value.ndim > 1), 1)

    handles = [part.register_forward_hook(hook, with_kwargs=True) for part in networks(pipe)]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()
