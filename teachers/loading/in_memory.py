"""Checks of a diffusers pipeline in memory before it becomes a teacher."""

from typing import Any

from torch import nn


def check_pipeline(pipeline: Any) -> None:
    """Check that the networks of a pipeline can be copied and exported as ordinary ones.

    Args:
        pipeline: A diffusers pipeline.

    Raises:
        ValueError: If one has adapters that are not merged, is compiled, or has no weights.
    """
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            check_network(part, f"{name} of the pipeline")


def check_network(network: nn.Module, name: str) -> None:
    """Check one network as `check_pipeline` does.

    Args:
        network: A network of a pipeline.
        name: Its name in errors.

    Raises:
        ValueError: If it has adapters that are not merged, is compiled, or has no weights.
    """
    if hasattr(network, "_orig_mod"):
        raise ValueError(
            f"{name} must not be compiled: pass the network from before torch.compile, and set train.compile"
        )
    if any(hasattr(module, "base_layer") for module in network.modules()):  # of any kind of peft
        raise ValueError(
            f"{name} must not have adapters: merge them first (pipeline.fuse_lora() and pipeline.unload_lora_weights())"
        )
    if any(parameter.is_meta for parameter in network.parameters()):
        raise ValueError(
            f"{name} must have weights, but it is on the meta device, as with sequential offloading "
            "(enable_sequential_cpu_offload)"
        )
