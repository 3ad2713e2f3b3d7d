"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174) for networks that share weights.

Backward recomputes a block's activations. By then another adapter may be active, and other parameters may be frozen, so
the recomputed activations could differ in value or number. Each recomputation therefore restores the adapter and the
frozen parameters of the forward pass. The tangent of sCM is computed without gradients and is not checkpointed.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

from diffusers import ChromaTransformer2DModel, ModelMixin
from diffusers.models.transformers.transformer_chroma import ChromaSingleTransformerBlock
from torch import nn
from torch.utils.checkpoint import checkpoint

from teachers.networks.adapters import Adapted, unwrap
from teachers.support.private_api import supports_gradient_checkpointing


def checkpoint_activations(network: nn.Module, required: bool = True) -> bool:
    """Enable activation checkpointing on a network, in place, and on all copies made of it later.

    Args:
        network: A diffusers network, or an adapter on one.
        required: Whether an unsupported architecture is an error.

    Returns:
        False if the architecture does not support activation checkpointing.

    Raises:
        ValueError: If it is `required` and not supported.
    """
    base = unwrap(network)
    if not isinstance(base, ModelMixin) or not supports_gradient_checkpointing(base):
        if not required:
            return False
        raise ValueError(
            f"memory.checkpointing must be false: {type(base).__name__} does not support activation checkpointing"
        )
    pin = network.lora_base.pin if isinstance(network, Adapted) else _nothing_to_pin
    if isinstance(base, ChromaTransformer2DModel):
        base.register_forward_pre_hook(_keep_mask, with_kwargs=True)

    def run(block: nn.Module, *args: Any) -> Any:
        if isinstance(block, ChromaSingleTransformerBlock):  # its network omits the mask with activation checkpointing
            args = (*args, _mask.get())
        return checkpoint(pinned(block, pin()), *args, use_reentrant=False, preserve_rng_state=False)

    base.enable_gradient_checkpointing(run)
    return True


_mask: ContextVar[Any] = ContextVar("mask", default=None)


def _keep_mask(module: nn.Module, args: Any, keywords: dict[str, Any]) -> None:
    """Keep the mask of a network's call for its blocks."""
    _mask.set(keywords.get("attention_mask"))


def pinned(block: nn.Module, context: Callable[[], AbstractContextManager[Any]]) -> Callable[..., Any]:
    """Bind a block to the parameters that are frozen now.

    Args:
        block: The block.
        context: Returns the context in which the block runs, for each call.

    Returns:
        A function that calls `block` in that context with the same parameters frozen as now.
    """
    trainable = [p.requires_grad for p in block.parameters()]

    def call(*args: Any) -> Any:
        with context():
            parameters = list(block.parameters())
            before = [p.requires_grad for p in parameters]
            _require(parameters, trainable)
            try:
                return block(*args)
            finally:
                _require(parameters, before)

    return call


def _require(parameters: Sequence[nn.Parameter], flags: Sequence[bool]) -> None:
    for parameter, value in zip(parameters, flags, strict=True):
        if parameter.requires_grad != value:
            parameter.requires_grad_(value)


def _nothing_to_pin() -> Callable[[], AbstractContextManager[Any]]:
    return nullcontext
