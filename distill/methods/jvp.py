"""The derivative of a network along a trajectory, for continuous-time consistency distillation (sCM).

    value, derivative = jvp(lambda x, t: student.velocity(x, t, cond), (x_t, t), (dx_dt, torch.ones_like(t)))

`jvp` is exact: forward-mode automatic differentiation with `torch.autograd.forward_ad`. Expensive operations have their
own rules (`distill.methods.jvp_rules`); all others use PyTorch's formulas. It supports any attention processor and any
memory format. `finite_difference` is approximate, needs two forward passes and float32.

Source: Lu and Song 2024 (arXiv 2410.11081): the JVP of the rearranged tangent, and an attention that computes its own
derivative because fused kernels have none. Their attention is fused; this one computes scores in blocks.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from distill.methods.compiling import eager
from distill.methods.jvp_rules import COMPOSITES, FLASH_RULES, RULES, Pair
from teachers.networks.fast_paths import without_fast_paths
from teachers.networks.precision import float32_products
from teachers.networks.storage import autocasting, without_autocast
from teachers.support.private_api import undispatched

Precision = Literal["float32", "tf32", "bf16"]


def jvp(
    function: Callable[..., Tensor],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
    flash: bool = False,
    precision: Precision = "float32",
) -> Pair:
    """`function(*primals)` and its derivative along `tangents`, exact and in one forward pass.

    No gradient is recorded, whatever the grad mode of the caller: compute the tangent first, then the loss with an
    ordinary forward pass. The caller's autocast is off inside, so a float32 network gives a float32 derivative. Dropout
    uses a new mask, so use eval mode. Parameters are constants. Networks that are compiled in place run without
    compilation. Not for use inside another forward-mode derivative.

    Args:
        function: Takes as many tensors as there are primals and returns one tensor.
        primals: The point at which the derivative is computed.
        tangents: The direction: one tensor for each primal, of the same shape.
        flash: Compute self-attention on CUDA with the fused kernel of the package jvp-flash-attention where it is
            applicable (`jvp_rules.flash_fits`). The kernel stores no scores and multiplies float32 matrices in TF32.
        precision: Of matrix products and convolutions: "float32", "tf32" (on CUDA; float32 elsewhere), or "bf16", which
            is autocast with float32 normalisations, attention and time embedding.

    Returns:
        The value and the derivative, both of the shape of the function's output.

    Raises:
        ValueError: Under `torch.inference_mode`, which disables forward-mode differentiation.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and torch.is_inference_mode_enabled():
        raise ValueError("torch.inference_mode disables forward-mode differentiation: use torch.no_grad instead")
    decomposed = nullcontext() if compiling else _decomposed()
    device = primals[0].device
    with decomposed, torch.no_grad(), _products(precision, device, compiling), forward_ad.dual_level():
        # Clones, because an expanded tensor cannot be dual and the function may write to its arguments.
        duals = [
            forward_ad.make_dual(p.detach().clone(), t.detach().to(p.dtype).clone())
            for p, t in zip(primals, tangents, strict=True)
        ]
        with RuleMode((FLASH_RULES if flash else RULES) | {Tensor.to: _kept_timesteps}):
            output = function(*duals)
        value, derivative = forward_ad.unpack_dual(output)
        return value, torch.zeros_like(value) if derivative is None else derivative


def _kept_timesteps(function: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Pair | None:
    """Timesteps (B,) stay in float32 under autocast, where networks convert them to the precision of their samples.

    Networks multiply timesteps in [0, 1] by 1000 and embed them with frequencies up to 1, so rounding a timestep would
    change its embedding and the derivative of it.
    """
    value, derivative = forward_ad.unpack_dual(x)
    if x.ndim != 1 or x.dtype != torch.float32 or derivative is None or not autocasting(x.device):
        return None
    converted = function(value, *args, **kwargs)
    return (value.clone(), derivative) if converted.dtype in (torch.float16, torch.bfloat16) else None


@contextmanager
def _products(precision: Precision, device: torch.device, compiling: bool) -> Iterator[None]:
    """A context with the precision of matrix products and convolutions; a compiler keeps that of its caller."""
    exact = precision == "float32" or device.type != "cuda"
    setting = nullcontext() if compiling else float32_products(tf32=not exact)
    half = precision == "bf16" and device.type != "meta"
    with setting, torch.autocast(device.type, torch.bfloat16) if half else without_autocast(device):
        yield


def finite_difference(
    function: Callable[..., Tensor],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
    step: float = 1e-4,
    exact_value: bool = False,
) -> Pair:
    """`function(*primals)` and its derivative along `tangents`, by a central difference.

    The two ends are `primals +- step * tangents`.

    The rounding error of the derivative falls with the step, and the truncation error grows as step^2. For t in [0, 1]
    and a network that embeds 1000 t the error is 0.1% at a step of 1e-4 in float32 and 10% at 1e-3; 1e-2 is unusable.
    Half precision and TF32 are unusable at any step: half-precision primals are converted to float32, and autocast and
    TF32 are off inside.

    Args:
        function, primals, tangents: As for `jvp`.
        step: The step of the difference.
        exact_value: Compute the value by a third forward pass. By default the value is the mean of the two ends, whose
            error is step^2 / 2 times the second derivative, usually below float32's rounding.

    Returns:
        The value and the derivative, both of the shape of the function's output.
    """
    device = primals[0].device
    with torch.no_grad(), _products("float32", device, torch.compiler.is_compiling()):
        points = [p.float() if p.dtype in (torch.float16, torch.bfloat16) else p for p in primals]
        offsets = [step * t.to(p.dtype) for p, t in zip(points, tangents, strict=True)]
        above = function(*(p + offset for p, offset in zip(points, offsets, strict=True)))
        below = function(*(p - offset for p, offset in zip(points, offsets, strict=True)))
        value = function(*points) if exact_value else (above + below) / 2
        return value, (above - below) / (2 * step)


TANGENTS = ("jvp", "jvp_flash", "finite_difference")


def tangent(
    kind: str = "auto", device: torch.device | str = "cpu", precision: Precision | Literal["auto"] = "auto"
) -> tuple[Callable[..., Pair], str]:
    """Choose how derivatives are computed.

    Args:
        kind: "jvp", "jvp_flash", "finite_difference", or "auto": "jvp_flash" on CUDA if the package
            jvp-flash-attention is installed, else "jvp". Both are exact for every teacher family.
        device: Where the network runs.
        precision: As of `jvp`, or "auto": "tf32" on CUDA, else "float32". A finite difference is in float32 only.

    Returns:
        The function, and a message with the choice and its reason.

    Raises:
        ValueError: For an unknown kind, for "jvp_flash" without CUDA or without the package, and for a finite
            difference in another precision than float32.
    """
    if kind not in ("auto", *TANGENTS):
        raise ValueError(f"method.tangent must be one of auto, {', '.join(TANGENTS)}, got {kind!r}")
    if kind == "finite_difference":
        if precision not in ("auto", "float32"):
            raise ValueError(f"method.tangent_precision must be float32 with method.tangent={kind}, got {precision!r}")
        return finite_difference, "tangent: finite_difference in float32 (from the recipe)"
    cuda, installed = torch.device(device).type == "cuda", importlib.util.find_spec("jvp_flash_attention") is not None
    if kind == "jvp_flash" and not (cuda and installed):
        missing = "the package jvp-flash-attention (pip install jvp-flash-attention)" if cuda else "a CUDA device"
        raise ValueError(f"method.tangent=jvp_flash needs {missing}; jvp is exact on every device")
    flash = kind == "jvp_flash" or (kind == "auto" and cuda and installed)
    if precision == "auto":
        precision = "tf32"
    if precision == "tf32" and not cuda:  # only CUDA has TF32
        precision = "float32"
    name = "jvp_flash" if flash else "jvp"
    if kind != "auto":
        reason = "from the recipe"
    elif flash:
        reason = "exact forward mode with jvp-flash-attention's fused kernel"
    else:
        missing = "jvp-flash-attention is not installed" if cuda else "no CUDA device for fused attention"
        reason = f"exact forward mode, attention in blocks: {missing}"
    return partial(jvp, flash=flash, precision=precision), f"tangent: {name} in {precision} ({reason})"


@contextmanager
def _decomposed() -> Iterator[None]:
    """A context in which nothing is compiled and no fused kernel without a forward derivative is chosen.

    Those are the fused attention kernels, and the fast paths of `nn.MultiheadAttention` and
    `nn.TransformerEncoderLayer`. The rules compute most attention before PyTorch chooses a kernel.
    """
    with eager(), without_fast_paths(), sdpa_kernel(SDPBackend.MATH):
        yield


class RuleMode(TorchFunctionMode):
    """While active, a function in `rules` is computed by its rule; all other functions run unchanged.

    A rule returns the value and its derivative, or None to use PyTorch's formula. Inside a rule the mode is inactive.
    Functions in `COMPOSITES` are Python code whose parts are computed by their rules.
    """

    def __init__(self, rules: dict[Any, Callable[..., Pair | None]]) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in COMPOSITES:
            with self:
                return undispatched(function)(*args, **kwargs)
        rule = self.rules.get(function)
        pair = rule(function, *args, **kwargs) if rule else None
        return function(*args, **kwargs) if pair is None else forward_ad.make_dual(*pair)
