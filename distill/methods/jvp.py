"""The derivative of a network along a trajectory, which continuous-time consistency distillation (sCM) needs.

    value, derivative = jvp(lambda x, t: student.velocity(x, t, cond), (x_t, t), (dx_dt, torch.ones_like(t)))

`jvp` is exact: forward-mode automatic differentiation over `torch.autograd.forward_ad`, with tangent rules of its own
for the expensive operations (`distill.methods.jvp_rules`); whatever has none goes through PyTorch's. It asks nothing of
the network: any attention processor, any memory format. `finite_difference` is approximate, costs two forwards and
needs float32.

Source: Lu and Song 2024 (arXiv 2410.11081): the JVP of the rearranged tangent, and an attention that carries its own
tangent because fused kernels have none (theirs is fused; here scores are formed, a block at a time).
"""

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from distill.methods.compiling import eager
from distill.methods.jvp_rules import FLASH_RULES, RULES, Pair
from teachers.networks.storage import without_autocast


def jvp(
    function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...], flash: bool = False
) -> Pair:
    """`function(*primals)` and its derivative along `tangents` (each the shape of its primal), exact and in one pass.

    No gradient is recorded, whatever the caller does: take the tangent first, then an ordinary forward for the loss.
    Autocast is off inside, so a float32 network gives a float32 tangent. Dropout draws its own mask: use eval mode.
    Parameters are constants. Networks that are compiled in place run as they are. Not for use inside another
    forward-mode derivative, nor under `torch.inference_mode`.

    With `flash`, self-attention on CUDA runs in the fused kernel of the package jvp-flash-attention where that fits
    (`tangent_rules.flash_fits`): no scores in memory, and the rounding of its matrix products (TF32 for float32).
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and torch.is_inference_mode_enabled():
        raise ValueError("torch.inference_mode switches forward-mode differentiation off: use torch.no_grad")
    as_they_are = nullcontext() if compiling else eager()
    with as_they_are, torch.no_grad(), without_autocast(primals[0].device), forward_ad.dual_level():
        # Clones: an expanded tensor has no dual, and the function may write into its arguments.
        duals = [
            forward_ad.make_dual(p.detach().clone(), t.detach().to(p.dtype).clone())
            for p, t in zip(primals, tangents, strict=True)
        ]
        with _Rules(FLASH_RULES if flash else RULES):
            output = function(*duals)
        value, derivative = forward_ad.unpack_dual(output)
        return value, torch.zeros_like(value) if derivative is None else derivative


def finite_difference(
    function: Callable[..., Tensor],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
    step: float = 1e-4,
    exact_value: bool = False,
) -> Pair:
    """Value and derivative as `jvp` gives them, by a central difference over `primals +- step * tangents`.

    The value is the mean of the two ends, off by step^2 / 2 times the second derivative, which float32 seldom sees:
    two forwards in all. With `exact_value` it is `function(*primals)`, a third forward. The derivative's rounding error
    falls with the step and its truncation error grows as step^2: for t in [0, 1] and a network that embeds 1000 t,
    1e-4 misses by 0.1% in float32, 1e-3 by 10% and 1e-2 is useless. Half precision is useless at any step, so halves
    are raised to float32 and autocast is off inside.
    """
    with torch.no_grad(), without_autocast(primals[0].device):
        points = [p.float() if p.dtype in (torch.float16, torch.bfloat16) else p for p in primals]
        offsets = [step * t.to(p.dtype) for p, t in zip(points, tangents, strict=True)]
        above = function(*(p + offset for p, offset in zip(points, offsets, strict=True)))
        below = function(*(p - offset for p, offset in zip(points, offsets, strict=True)))
        value = function(*points) if exact_value else (above + below) / 2
        return value, (above - below) / (2 * step)


def jvp_flash(function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Pair:
    """`jvp` with `flash`."""
    return jvp(function, primals, tangents, flash=True)


TANGENTS: dict[str, Callable[..., Pair]] = {
    "jvp": jvp,
    "jvp_flash": jvp_flash,
    "finite_difference": finite_difference,
}


def tangent(kind: str = "auto", device: torch.device | str = "cpu") -> tuple[Callable[..., Pair], str]:
    """The function of that name, and a sentence on which it is and why.

    "auto" is exact on every family: `jvp_flash` on CUDA where the package jvp-flash-attention is installed, else `jvp`.
    ValueError for an unknown name, or where "jvp_flash" is asked for and cannot be had.
    """
    if kind not in ("auto", *TANGENTS):
        raise ValueError(f"no tangent called {kind!r}: choose one of auto, {', '.join(TANGENTS)}")
    cuda, installed = torch.device(device).type == "cuda", importlib.util.find_spec("jvp_flash_attention") is not None
    if kind == "jvp_flash" and not (cuda and installed):
        lacking = "pip install jvp-flash-attention" if cuda else "it needs a CUDA device"
        raise ValueError(f"the tangent jvp_flash cannot be had here ({lacking}); choose jvp, which is exact everywhere")
    if kind != "auto":
        return TANGENTS[kind], f"tangent: {kind}, as asked"
    if cuda and installed:
        return jvp_flash, "tangent: jvp_flash (exact forward mode, jvp-flash-attention's fused kernel is installed)"
    reason = "no CUDA device to fuse attention on" if not cuda else "jvp-flash-attention, which fuses it, is missing"
    return jvp, f"tangent: jvp (exact forward mode, attention a block at a time: {reason})"


class _Rules(TorchFunctionMode):
    """While active, a function in `RULES` follows its rule and every other runs as it is; within a rule, none do.

    A rule returns a value and its tangent, or None to leave the call to PyTorch.
    """

    def __init__(self, rules: dict[Any, Callable[..., Pair | None]]) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = self.rules.get(function)
        pair = rule(function, *args, **kwargs) if rule else None
        return function(*args, **kwargs) if pair is None else forward_ad.make_dual(*pair)
