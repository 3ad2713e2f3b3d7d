"""`torch.compile` for the networks of a run (the recipe's `train.compile`), in place: no name of a weight changes.

"blocks" compiles the blocks that a network repeats, each kind once (diffusers' regional compilation); a network without
any is compiled whole. "networks" compiles every network whole: more is fused, and the start takes minutes. Shapes are
those of the run, so nothing is compiled for shapes in general.

What must see a network's inside runs it as it is (`eager`): the exact tangent, which replaces operations by its own
rules, the features that a discriminator reads through a hook, and evaluations, whose batches have sizes of their own.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from teachers.support.private_api import compiler_is_loaded, raise_recompile_limit, repeated_blocks

How = Literal["none", "blocks", "networks"]
BACKEND = "inductor"
LAYERS = ("transformer_blocks", "layers")
VARIANTS = 64  # of one block: by width, batch, and whether a gradient is wanted; PyTorch's own limit of 8 is soon met


def eager() -> AbstractContextManager[Any]:
    """Within this context compiled networks run uncompiled. Not for use in what is being compiled itself."""
    if not compiler_is_loaded():
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def compile_network(network: nn.Module, how: How) -> None:
    """Compile `network` in place, at its first calls."""
    for module in _regions(network) if how == "blocks" else [network]:
        module.compile(backend=BACKEND, dynamic=False)


def start(device: torch.device) -> None:
    """Make the compiler ready; ValueError in a sentence where this machine lacks what it needs."""
    try:
        raise_recompile_limit(VARIANTS)
        torch.compile(_probe, backend=BACKEND)(torch.zeros(4, device=device))
    except Exception as error:  # a missing compiler, Python's headers, Triton: each fails in its own way
        why = " ".join(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0].split())[:200] or repr(error)
        needs = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++"
        raise ValueError(
            f"train.compile needs {needs}, and a trial on this machine failed ({why}); "
            "install it, or set train.compile=none"
        ) from error


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


def _regions(network: nn.Module) -> list[nn.Module]:
    """The blocks that `network` repeats: those that diffusers names, else a transformer's layers; else the whole."""
    names = repeated_blocks(network)
    found = [module for module in network.modules() if type(module).__name__ in names]
    layers = [module for name, child in network.named_children() if name in LAYERS for module in child.children()]
    return found or layers or [network]
