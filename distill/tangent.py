"""The derivative of a network along a trajectory, which continuous-time consistency distillation (sCM) needs.

    value, derivative = jvp(lambda x, t: student.velocity(x, t, cond), (x_t, t), (dx_dt, torch.ones_like(t)))

`jvp` is exact: forward-mode automatic differentiation over `torch.autograd.forward_ad`, with tangent rules of its own
for the expensive operations (`RULES`); whatever has none goes through PyTorch's. It asks nothing of the network: any
attention processor, any memory format. `finite_difference` is approximate, costs two forwards and needs float32.

Source: Lu and Song 2024 (arXiv 2410.11081): the JVP of the rearranged tangent, and an attention that carries its own
tangent because fused kernels have none (theirs is fused; here scores are formed, a block at a time).

Why the rules are faster than PyTorch's formulas:
- Those materialise and compute with a zero tangent for whatever is constant: a convolution's weight costs a second
  convolution, `x / 2` costs eleven times its forward.
- A function whose Jacobian is symmetric (element-wise ones, softmax, a normalisation before its affine part) has
  J v = J^T v: its fused backward kernel is its forward derivative, in one pass.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

Pair = tuple[Tensor, Tensor]

aten = torch.ops.aten

# Attention scores held at once, in numbers (three such buffers live together): on a CPU they should stay in its cache.
SCORES, SCORES_CPU = 2**25, 2**17


def jvp(
    function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...], flash: bool = False
) -> Pair:
    """`function(*primals)` and its derivative along `tangents` (each the shape of its primal), exact and in one pass.

    No gradient is recorded, whatever the caller does: take the tangent first, then an ordinary forward for the loss.
    Autocast is off inside, so a float32 network gives a float32 tangent. Dropout draws its own mask: use eval mode.
    Parameters are constants. Not for use inside another forward-mode derivative, nor under `torch.inference_mode`.

    With `flash`, self-attention on CUDA runs in the fused kernel of the package jvp-flash-attention where that fits
    (`_flash_fits`): no scores in memory, and the rounding of its matrix products (TF32 for float32 inputs).
    """
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        raise ValueError("torch.inference_mode switches forward-mode differentiation off: use torch.no_grad")
    with torch.no_grad(), _autocast_off(primals), forward_ad.dual_level():
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
    with torch.no_grad(), _autocast_off(primals):
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


def _autocast_off(primals: tuple[Tensor, ...]) -> AbstractContextManager[Any]:
    device = primals[0].device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


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


def _split(x: Any) -> tuple[Any, Any]:
    """A value and its tangent, or None: what is no tensor, or not dual, is constant."""
    return forward_ad.unpack_dual(x) if isinstance(x, Tensor) else (x, None)


def _constant(*values: Any) -> bool:
    return all(_split(x)[1] is None for x in values)


def _sum(function: Any, *args: Any, **kwargs: Any) -> Pair | None:
    """x + c and x - c."""
    if kwargs or len(args) != 2 or not _constant(args[1]) or _constant(args[0]):
        return None
    x, dx = _split(args[0])
    value = function(x, args[1])
    # A copy even where the shapes agree: two duals that share a tangent would share later writes into it.
    return value, torch.empty_like(value).copy_(dx)


def _product(function: Any, *args: Any, **kwargs: Any) -> Pair | None:
    """Whatever is linear in either of two operands."""
    if kwargs or len(args) != 2 or _constant(*args):
        return None
    (x, dx), (y, dy) = _split(args[0]), _split(args[1])
    if dx is None or dy is None:
        return function(x, y), function(x, dy) if dx is None else function(dx, y)
    return function(x, y), function(dx, y).add_(function(x, dy))


def _quotient(function: Any, *args: Any, **kwargs: Any) -> Pair | None:
    """x / c."""
    return _product(function, *args, **kwargs) if len(args) == 2 and _constant(args[1]) else None


def _affine(function: Any, input: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any) -> Pair | None:
    """F.linear and F.conv2d: the tangent goes through the same weight, without the bias."""
    x, dx = _split(input)
    if dx is None or not _constant(weight, bias):
        return None
    if weight.numel() <= x.numel() or x.dim() < weight.dim():
        return function(x, weight, bias, *args, **kwargs), function(dx, weight, None, *args, **kwargs)
    # Here reading the weight dominates: one call for both. A dual's two halves need layouts alike, hence the copies.
    value, derivative = function(torch.cat((x, dx)), weight, None, *args, **kwargs).chunk(2)
    value = value.clone() if bias is None else value + bias.view(-1, *(1,) * (weight.dim() - 2))
    return value, derivative.clone()


def _group_norm(
    function: Any, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Pair | None:
    x, dx = _split(input)
    if dx is None or not _constant(weight, bias):
        return None
    x, dx = x.contiguous(), dx.contiguous()
    sizes = (x.size(0), x.size(1), math.prod(x.shape[2:]), num_groups)
    value, mean, rstd = torch.native_group_norm(x, weight, bias, *sizes, eps)
    derivative = aten.native_group_norm_backward(dx, x, mean, rstd, None, *sizes, [True, False, False])[0]
    return value, derivative if weight is None else derivative.mul_(weight.view(-1, *(1,) * (x.dim() - 2)))


def _layer_norm(
    function: Any, input: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Pair | None:
    x, dx = _split(input)
    if dx is None or not _constant(weight, bias):
        return None
    x, dx = x.contiguous(), dx.contiguous()
    value, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
    derivative = aten.native_layer_norm_backward(dx, x, shape, mean, rstd, None, None, [True, False, False])[0]
    return value, derivative if weight is None else derivative.mul_(weight)


def _rms_norm(function: Any, input: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Pair | None:
    x, dx = _split(input)
    if dx is None or not _constant(weight):
        return None
    dims = tuple(range(-len(shape), 0))
    scale = torch.rsqrt(x.square().mean(dims, keepdim=True).add_(torch.finfo(x.dtype).eps if eps is None else eps))
    value = x * scale
    derivative = torch.addcmul(dx, value, (value * dx).mean(dims, keepdim=True), value=-1).mul_(scale)
    return (value, derivative) if weight is None else (value.mul_(weight), derivative.mul_(weight))


def _silu(function: Any, input: Tensor, inplace: bool = False) -> Pair | None:
    x, dx = _split(input)
    return None if dx is None or inplace else (F.silu(x), aten.silu_backward(dx, x))


def _gelu(function: Any, input: Tensor, approximate: str = "none") -> Pair | None:
    x, dx = _split(input)
    if dx is None:
        return None
    return F.gelu(x, approximate=approximate), aten.gelu_backward(dx, x, approximate=approximate)


def _softmax(function: Any, input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Pair | None:
    x, dx = _split(input)
    if dx is None or dim is None or args or kwargs.get("dtype") is not None:
        return None
    value = torch.softmax(x, dim)
    return value, aten._softmax_backward_data(dx, value, dim, x.dtype)


def _attention(
    function: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Pair | None:
    """softmax(scale Q K' + mask) V. Rows of scores are independent, so they are formed a block at a time."""
    pairs: Any = [_split(query), _split(key), _split(value)]
    if _constant(query, key, value) or not _constant(attn_mask) or (is_causal and attn_mask is not None):
        return None
    if dropout_p:
        raise ValueError("attention with dropout has no tangent here: put the network in eval mode")
    if enable_gqa:
        heads = query.size(-3)
        pairs = [tuple(None if x is None else x.repeat_interleave(heads // x.size(-3), -3) for x in p) for p in pairs]
    batch = torch.broadcast_shapes(*(x.shape[:-2] for x, _ in pairs))
    flat: Any = (
        x if x is None else x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for p in pairs for x in p
    )
    q, dq, k, dk, v, dv = flat
    rows, columns = q.size(-2), k.size(-2)
    scale = q.size(-1) ** -0.5 if scale is None else scale
    q, dq, k, dk = q * scale, None if dq is None else dq * scale, k.mT, None if dk is None else dk.mT
    if is_causal:
        attn_mask = torch.ones(rows, columns, dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, -math.inf)
        attn_mask = attn_mask.expand(*batch, rows, columns).reshape(-1, rows, columns)

    output = q.new_empty(len(q), rows, v.size(-1))
    derivative = torch.empty_like(output)
    for head, row in _blocks(len(q), rows, columns, q.device):
        block = head, row
        if attn_mask is None:
            p = torch.softmax(torch.bmm(q[block], k[head]), -1)
        else:  # "safe": a row that may look at nothing is 0, as in the fused kernels
            p = torch._safe_softmax(torch.baddbmm(attn_mask[block], q[block], k[head]), -1)
        output[block] = torch.bmm(p, v[head])
        ds = None if dq is None else torch.bmm(dq[block], k[head])
        if dk is not None:
            ds = torch.bmm(q[block], dk[head]) if ds is None else ds.baddbmm_(q[block], dk[head])
        do: Any = None if dv is None else torch.bmm(p, dv[head])
        if ds is not None:
            dp = aten._softmax_backward_data(ds, p, -1, ds.dtype)
            do = torch.bmm(dp, v[head]) if do is None else do.baddbmm_(dp, v[head])
        derivative[block] = do
    return output.view(*batch, rows, -1), derivative.view(*batch, rows, -1)


def _flash_attention(
    function: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Pair | None:
    """Self-attention in the fused kernel of jvp-flash-attention; whatever does not fit it goes the ordinary way."""
    if not _flash_fits(query, key, value) or args or set(kwargs) - {"scale", "is_causal"}:
        return _attention(function, query, key, value, *args, **kwargs)
    from jvp_flash_attention.jvp_attention import JVPAttn  # Triton: imported where there is a GPU only

    (q, dq), (k, dk), (v, dv) = ((x.contiguous(), dx.contiguous()) for x, dx in map(_split, (query, key, value)))
    causal, scale = kwargs.get("is_causal", False), kwargs.get("scale")
    output, extra = JVPAttn.forward(q, k, v, dq, dk, dv, None, 0.0, causal, scale)
    return output, extra.o_t


def _flash_fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """What the kernel takes: four dimensions, one shape for all, heads of powers of two, an even number of rows."""
    rows, size = query.shape[-2:]
    shapes = query.ndim == 4 and query.shape == key.shape == value.shape
    return (
        shapes
        and rows % 2 == 0
        and rows >= 32
        and size in (16, 32, 64, 128, 256)
        and not any(_split(x)[1] is None for x in (query, key, value))
    )


def _blocks(heads: int, rows: int, columns: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Some heads with all their rows, or some rows of one head. A compiler unrolls them: fewer for it."""
    scores = SCORES_CPU if device.type == "cpu" and not torch.compiler.is_compiling() else SCORES
    some_heads = max(1, scores // (rows * columns))
    some_rows = max(1, scores // columns) if some_heads == 1 else rows
    for head in range(0, heads, some_heads):
        for row in range(0, rows, some_rows):
            yield slice(head, head + some_heads), slice(row, row + some_rows)


RULES: dict[Any, Callable[..., Pair | None]] = {
    **dict.fromkeys((torch.add, Tensor.add, torch.sub, Tensor.sub), _sum),
    **dict.fromkeys((torch.mul, Tensor.mul, torch.matmul, Tensor.matmul, torch.bmm, Tensor.bmm), _product),
    **dict.fromkeys((torch.div, Tensor.div), _quotient),
    **dict.fromkeys((F.conv2d, F.linear), _affine),
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), _softmax),
    F.scaled_dot_product_attention: _attention,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.silu: _silu,
    F.gelu: _gelu,
}
FLASH_RULES = RULES | {F.scaled_dot_product_attention: _flash_attention}
