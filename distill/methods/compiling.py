"""`torch.compile` for the networks of a run (the recipe's `train.compile`), in place: parameter names do not change.

"blocks" compiles the repeated blocks of a network, each kind once (diffusers' regional compilation); a network without
repeated blocks is compiled as a whole. "networks" compiles every network as a whole, which fuses more operations but
takes minutes at the start. Shapes are static.

Code that depends on a network's inner operations runs it without compilation (`eager`): the exact JVP, which replaces
operations by its own rules; a discriminator, which reads features through a hook; and evaluations, which use other
batch sizes.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from teachers.support.private_api import compiler_is_loaded, raise_recompile_limit, repeated_blocks

CompileMode = Literal["none", "blocks", "networks"]
BACKEND = "inductor"
LAYERS = ("transformer_blocks", "layers")
RECOMPILE_LIMIT = 64  # variants of one block (width, batch size, gradient mode); PyTorch's default of 8 is too small


def eager() -> AbstractContextManager[Any]:
    """A context in which compiled networks run without compilation. Do not use it in code that is compiled itself."""
    if not compiler_is_loaded():  # nothing is compiled, and importing the compiler takes seconds
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def compile_network(network: nn.Module, mode: CompileMode) -> None:
    """Compile `network` in place. Compilation happens at its first calls."""
    for module in _regions(network) if mode == "blocks" else [network]:
        module.compile(backend=BACKEND, dynamic=False)


def check_compiler(device: torch.device) -> None:
    """Configure the compiler and compile a small function.

    Raises:
        ValueError: If compilation fails on this machine, with the reason and what to install.
    """
    try:
        raise_recompile_limit(RECOMPILE_LIMIT)
        torch.compile(_probe, backend=BACKEND)(torch.zeros(4, device=device))
    except Exception as error:  # a missing compiler, missing Python headers and missing Triton raise different types
        reason = " ".join(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0].split())[:200] or repr(error)
        needs = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++"
        raise ValueError(
            f"train.compile needs {needs}, and a test compilation failed on this machine ({reason}); "
            "install it, or set train.compile=none"
        ) from error


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


def _regions(network: nn.Module) -> list[nn.Module]:
    """The repeated blocks of `network`: those that diffusers lists, else a transformer's layers, else the network."""
    names = repeated_blocks(network)
    blocks = [module for module in network.modules() if type(module).__name__ in names]
    layers = [module for name, child in network.named_children() if name in LAYERS for module in child.children()]
    return blocks or layers or [network]
