"""States of modules and optimizers as unsharded tensors, for checkpoints that any number of processes can load."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from distill.training.sharding import local_shard


def full_state(state: Any, keep: bool) -> Any:
    """`state` (nested dicts and lists) with unsharded tensors on the CPU. Every process calls it.

    Args:
        state: The state of a module or an optimizer.
        keep: Whether this process needs it, as the main one does; for others tensors are replaced by None.
    """
    if isinstance(state, Mapping):
        return {key: full_state(value, keep) for key, value in state.items()}
    if isinstance(state, list):
        return [full_state(value, keep) for value in state]
    if not isinstance(state, Tensor):
        return state
    tensor = state.full_tensor() if isinstance(state, DTensor) else state
    return tensor.detach().cpu() if keep else None


@torch.no_grad()
def load_full_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the result of `full_state` into a module, sharded or not. Every process calls it.

    Raises:
        ValueError: If names or shapes differ from the module's.
    """
    own = module.state_dict()
    if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
        raise ValueError(
            f"the tensors of the checkpoint must have the names and shapes of {type(module).__name__}; "
            "it was written for another network"
        )
    if not any(isinstance(tensor, DTensor) for tensor in own.values()):
        module.load_state_dict(state)
        return
    for name, tensor in own.items():
        value = state[name].to(tensor.device)
        if isinstance(tensor, DTensor):
            value = distribute_tensor(value, tensor.device_mesh, tensor.placements)
        tensor.copy_(value)


@contextmanager
def replaced_state(module: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Load `state` as `load_full_state` does; after the block the present one, kept on the CPU, is restored."""
    own = [local_shard(value).detach() for value in module.state_dict().values()]
    kept = [value.to("cpu", copy=True) for value in own]
    try:
        load_full_state(module, state)
        yield
    finally:
        for value, old in zip(own, kept, strict=True):
            value.copy_(old)


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the result of `full_state` into an optimizer, for any number of processes.

    Moments get the memory format and the sharding of their parameters.
    """
    optimizer.load_state_dict(state)
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                continue
            if isinstance(parameter, DTensor):
                entries[key] = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            elif value.stride() != parameter.stride():
                entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
