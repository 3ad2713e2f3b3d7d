"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174) for networks that share weights and freeze in turns.

Backward computes a block's activations again, later, when another adapter may be on and other parameters may be frozen
than at first; then it would find other activations, or another number of them. So each block is pinned to how it was.
The tangent of sCM is taken without gradients, and nothing is checkpointed there.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from diffusers import ModelMixin
from torch import nn
from torch.utils.checkpoint import checkpoint

from teachers.networks.adapters import Adapted, unwrap


def checkpoint_activations(network: nn.Module, asked: bool | None = True) -> bool:
    """Have `network`, and copies made of it, keep few activations and compute the others again in backward.

    What is computed again runs under the adapter, and with the frozen parameters, of the first time (`pinned`).
    Of an architecture that cannot: ValueError where it was `asked` for, else False.
    """
    base = unwrap(network)
    if not isinstance(base, ModelMixin) or not base._supports_gradient_checkpointing:
        if not asked:
            return False
        raise ValueError(f"{type(base).__name__} cannot checkpoint its activations; set memory.checkpointing to false")
    pin = network.lora_base.pin if isinstance(network, Adapted) else _nothing_to_pin

    def run(block: nn.Module, *args: Any) -> Any:
        return checkpoint(pinned(block, pin()), *args, use_reentrant=False, preserve_rng_state=False)

    base.enable_gradient_checkpointing(run)
    return True


def pinned(block: nn.Module, again: Callable[[], AbstractContextManager[Any]]) -> Callable[..., Any]:
    """`block` as it is now, whenever it is called: in the context `again()`, with the same parameters frozen."""
    trained = [p.requires_grad for p in block.parameters()]

    def call(*args: Any) -> Any:
        with again():
            parameters = list(block.parameters())
            before = [p.requires_grad for p in parameters]
            _require(parameters, trained)
            try:
                return block(*args)
            finally:
                _require(parameters, before)

    return call


def _require(parameters: Sequence[nn.Parameter], wanted: Sequence[bool]) -> None:
    for parameter, value in zip(parameters, wanted, strict=True):
        if parameter.requires_grad != value:
            parameter.requires_grad_(value)


def _nothing_to_pin() -> Callable[[], AbstractContextManager[Any]]:
    return nullcontext
