"""FSDP2: its options in accelerate's configuration, and sharding of networks with PyTorch's `fully_shard`."""

import os
from collections.abc import Sequence

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from distill.config.sections import TrainRecipe
from distill.training.environment import is_on
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
    fsdp = is_on("ACCELERATE_USE_FSDP")
    if settings.precision == "fp16" and (not torch.cuda.is_available() or fsdp):
        raise ValueError(
            "train.precision=fp16 needs a GPU and cannot be combined with FSDP2; use train.precision=bf16 or no"
        )
    if settings.shard_teacher and not fsdp:
        raise ValueError("train.shard_teacher needs FSDP2: use recipes/accelerate/fsdp2.yaml, or set it to false")
    if not fsdp:
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
    arguments = {
        "mesh": mesh,
        "reshard_after_forward": options.reshard_after_forward,
        "offload_policy": options.cpu_offload,
    }
    for block in sharded_blocks(network, options):
        fully_shard(block, **arguments)
    # The root is not resharded after forward (PyTorch's default): the backward pass of a discriminator starts at
    # features inside the network and needs the root's parameters.
    return fully_shard(network, **(arguments | {"reshard_after_forward": False}))


def sharded_blocks(network: nn.Module, options: FullyShardedDataParallelPlugin) -> list[nn.Module]:
    """The blocks of `network` that are gathered one at a time, innermost first; see `shard`."""
    names = options.transformer_cls_names_to_wrap or unsplittable_blocks(network)
    return [
        block for block in reversed(list(network.modules())) if block is not network and type(block).__name__ in names
    ]


def gathered_bytes(networks: Sequence[nn.Module], options: FullyShardedDataParallelPlugin) -> int:
    """Bytes of gathered parameters and gradients of sharded `networks`, at most.

    Everything outside the blocks stays gathered from forward to backward. Of the blocks, one is in use and the next one
    is gathered ahead; the gradients of one are complete before they are reduced.
    """
    outside = largest = 0
    for network in networks:
        blocks = [sum(p.nbytes for p in block.parameters()) for block in sharded_blocks(network, options)]
        within = {p for block in sharded_blocks(network, options) for p in block.parameters()}
        outside += sum(p.nbytes for p in network.parameters() if p not in within)
        largest = max([largest, *blocks])
    return outside + 3 * largest


def local_shard(tensor: Tensor) -> Tensor:
    """The part of `tensor` on this process; `tensor` itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
