"""FSDP2: its options in accelerate's configuration, and sharding of networks with PyTorch's `fully_shard`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from distill.config.recipe import TrainRecipe
from teachers.support.private_api import unsplittable_blocks


def sharding_options(settings: TrainRecipe) -> FullyShardedDataParallelPlugin | None:
    """The options of FSDP2 in accelerate's configuration.

    Args:
        settings: The recipe's `train` section.

    Returns:
        The options, or None without FSDP.

    Raises:
        ValueError: For engines and settings that are not supported.
    """
    on = {name for name in ("DEEPSPEED", "MEGATRON_LM", "FSDP") if os.environ.get(f"ACCELERATE_USE_{name}") == "true"}
    if on & {"DEEPSPEED", "MEGATRON_LM"}:
        raise ValueError(
            f"{' and '.join(sorted(on))} cannot train several networks with one optimizer each; "
            "use recipes/accelerate/fsdp2.yaml or ddp.yaml"
        )
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise ValueError(
            "accelerate's dynamo_config compiles the whole method, and forward-mode derivatives cannot be compiled; "
            "remove it from the configuration and set train.compile=blocks in the recipe"
        )
    if settings.precision == "fp16" and (not torch.cuda.is_available() or "FSDP" in on):
        raise ValueError(
            "train.precision=fp16 needs a GPU and cannot be combined with FSDP2; use train.precision=bf16 or no"
        )
    if settings.shard_teacher and "FSDP" not in on:
        raise ValueError("train.shard_teacher needs FSDP2: use recipes/accelerate/fsdp2.yaml, or set it to false")
    if "FSDP" not in on:
        return None
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise ValueError("FSDP version 1 is not supported; set fsdp_version: 2")
    return FullyShardedDataParallelPlugin(fsdp_version=2)


def shard(network: nn.Module, options: FullyShardedDataParallelPlugin, mesh: DeviceMesh) -> FSDPModule:
    """Shard `network` in place: each of its blocks, then the rest.

    Args:
        network: The network. Its blocks are those in the options, else those that diffusers lists.
        options: FSDP2's options.
        mesh: All processes, in one dimension.
    """
    names = options.transformer_cls_names_to_wrap or unsplittable_blocks(network)
    arguments = {
        "mesh": mesh,
        "reshard_after_forward": options.reshard_after_forward,
        "offload_policy": options.cpu_offload,
    }
    for block in reversed(list(network.modules())):
        if block is not network and type(block).__name__ in names:
            fully_shard(block, **arguments)
    # The root is not resharded after forward (PyTorch's default): the backward pass of a discriminator starts at
    # features inside the network and needs the root's parameters.
    return fully_shard(network, **(arguments | {"reshard_after_forward": False}))


def local_shard(tensor: Tensor) -> Tensor:
    """The part of `tensor` on this process; `tensor` itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def without_variable(name: str) -> Iterator[None]:
    """A context in which the environment variable `name` is not set."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value
