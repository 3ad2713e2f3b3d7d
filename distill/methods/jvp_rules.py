"""Forward-mode derivatives of expensive operations, for `distill.methods.jvp`.

A rule takes the arguments of a function, some of them dual tensors, and returns the value and its derivative, or None
if PyTorch's own formula should be used. The rules are faster than PyTorch's formulas for two reasons:

- PyTorch's formulas allocate a zero tangent for every constant and compute with it: a convolution's constant weight
  costs a second convolution, and `x / 2` costs eleven times its forward pass.
- A function with a symmetric Jacobian (element-wise functions, softmax, a normalisation before its affine part) has
  J v = J^T v, so its fused backward kernel also computes the forward-mode derivative, in one pass.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from teachers.networks.storage import autocasting, without_autocast
from teachers.support.private_api import safe_softmax, softmax_derivative

Pair = tuple[Tensor, Tensor]

aten = torch.ops.aten

# Number of attention scores in one block. Three such buffers exist at a time; on a CPU they should fit into its cache.
BLOCK_SCORES, BLOCK_SCORES_CPU = 2**25, 2**17


def _split(x: Any) -> tuple[Any, Any]:
    """The value and the tangent of `x`; the tangent of a constant (not a tensor, or not dual) is None."""
    return forward_ad.unpack_dual(x) if isinstance(x, Tensor) else (x, None)


def _float32(*tensors: Any) -> tuple[Any, ...]:
    """Tensors or None, in float32 under autocast, as PyTorch computes normalisations there."""
    if not autocasting(tensors[0].device):
        return tensors
    return tuple(x if x is None else x.float() for x in tensors)


def _constant(*values: Any) -> bool:
    return all(_split(x)[1] is None for x in values)


def _sum(function: Any, *args: Any, **kwargs: Any) -> Pair | None:
    """x + c and x - c with a constant c."""
    if kwargs or len(args) != 2 or not _constant(args[1]) or _constant(args[0]):
        return None
    x, dx = _split(args[0])
    value = function(x, args[1])
    # Always a copy: two dual tensors with the same tangent would share later in-place changes.
    return value, torch.empty_like(value).copy_(dx)


def _product(function: Any, *args: Any, **kwargs: Any) -> Pair | None:
    """Functions that are linear in each of two operands."""
    if kwargs or len(args) != 2 or _constant(*args):
        return None
    (x, dx), (y, dy) = _split(args[0]), _split(args[1])
    if dx is None or dy is None:
        return function(x, y), function(x, dy) if dx is None else function(dx, y)
    return function(x, y), function(dx, y).add_(function(x, dy))


def _quotient(function: Any, *args: Any, **kwargs: Any) -> Pair | None:
    """x / c with a constant c."""
    return _product(function, *args, **kwargs) if len(args) == 2 and _constant(args[1]) else None


def _affine(function: Any, input: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any) -> Pair | None:
    """F.linear and convolutions with constant parameters: the derivative uses the same weight without the bias."""
    x, dx = _split(input)
    if dx is None or not _constant(weight, bias):
        return None
    if weight.numel() <= x.numel() or x.dim() < weight.dim():
        return function(x, weight, bias, *args, **kwargs), function(dx, weight, None, *args, **kwargs)
    # Reading the weight dominates here, so one call computes both. A dual tensor needs the same layout for value and
    # tangent, hence the copies.
    value, derivative = function(torch.cat((x, dx)), weight, None, *args, **kwargs).chunk(2)
    value = value.clone() if bias is None else value + bias.view(-1, *(1,) * (weight.dim() - 2))
    return value, derivative.clone()


def _group_norm(
    function: Any, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Pair | None:
    x, dx = _split(input)
    if dx is None or not _constant(weight, bias):
        return None
    x, dx, weight, bias = _float32(x.contiguous(), dx.contiguous(), weight, bias)
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
    x, dx, weight, bias = _float32(x.contiguous(), dx.contiguous(), weight, bias)
    value, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
    derivative = aten.native_layer_norm_backward(dx, x, shape, mean, rstd, None, None, [True, False, False])[0]
    return value, derivative if weight is None else derivative.mul_(weight)


def _rms_norm(function: Any, input: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Pair | None:
    x, dx = _split(input)
    if dx is None or not _constant(weight):
        return None
    x, dx = _float32(x, dx)
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
    x, dx = _float32(x, dx)
    value = torch.softmax(x, dim)
    return value, softmax_derivative(dx, value, dim)


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
    """softmax(scale Q K^T + mask) V. Rows of scores are independent, so they are computed in blocks."""
    pairs: Any = [_split(query), _split(key), _split(value)]
    if _constant(query, key, value) or not _constant(attn_mask) or (is_causal and attn_mask is not None):
        return None
    if dropout_p:
        raise ValueError("attention dropout must be 0 in a JVP: put the network in eval mode")
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
        else:  # "safe": the output of a fully masked row is 0, as in the fused kernels
            p = safe_softmax(torch.baddbmm(attn_mask[block], q[block], k[head]), -1)
        output[block] = torch.bmm(p, v[head])
        ds = None if dq is None else torch.bmm(dq[block], k[head])
        if dk is not None:
            ds = torch.bmm(q[block], dk[head]) if ds is None else ds.baddbmm_(q[block], dk[head])
        do: Any = None if dv is None else torch.bmm(p, dv[head])
        if ds is not None:
            dp = softmax_derivative(ds, p, -1)
            do = torch.bmm(dp, v[head]) if do is None else do.baddbmm_(dp, v[head])
        derivative[block] = do
    return output.view(*batch, rows, -1), derivative.view(*batch, rows, -1)


def _exact_attention(
    function: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Pair | None:
    """`_attention` in float32 under autocast: scores and their derivatives are too coarse in half precision."""
    query, key, value = map(_dual_float32, (query, key, value))
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        (attn_mask,) = _float32(attn_mask)
    with without_autocast(query.device):
        return _attention(function, query, key, value, attn_mask, dropout_p, is_causal, **kwargs)


def _dual_float32(x: Tensor) -> Any:
    """A tensor that may be dual, in float32 under autocast."""
    value, tangent = _split(x)
    if not autocasting(x.device) or tangent is None:
        return _float32(x)[0]
    return forward_ad.make_dual(*_float32(value, tangent))


def _flash_attention(
    function: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Pair | None:
    """Self-attention with the fused kernel of jvp-flash-attention, or `_attention` if the kernel is not applicable."""
    query, key, value = map(_dual_float32, (query, key, value))
    if not flash_fits(query, key, value) or args or set(kwargs) - {"scale", "is_causal"}:
        return _exact_attention(function, query, key, value, *args, **kwargs)
    from jvp_flash_attention.jvp_attention import JVPAttn  # needs Triton, so it is imported on GPUs only

    size = query.size(-1)
    padding = (0, kernel_size(size) - size)  # zeros change neither scores nor outputs
    (q, dq), (k, dk), (v, dv) = (
        (F.pad(x, padding).contiguous(), F.pad(dx, padding).contiguous()) for x, dx in map(_split, (query, key, value))
    )
    scale = kwargs.get("scale")
    scale = size**-0.5 if scale is None else scale
    output, extra = JVPAttn.forward(q, k, v, dq, dk, dv, None, 0.0, kwargs.get("is_causal", False), scale)
    return output[..., :size].contiguous(), extra.o_t[..., :size].contiguous()


def kernel_size(size: int) -> int:
    """The size of heads with which the fused kernel computes heads of `size`: a power of two of at least 16."""
    return max(16, 1 << (size - 1).bit_length())


def flash_fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the fused kernel supports these inputs.

    It needs dual tensors (B, H, L, E) of one shape, an even L of at least 32, and E of at most 256.
    """
    rows, size = query.shape[-2:]
    shapes = query.ndim == 4 and query.shape == key.shape == value.shape
    return (
        shapes
        and rows % 2 == 0
        and rows >= 32
        and size <= 256
        and not any(_split(x)[1] is None for x in (query, key, value))
    )


def _blocks(heads: int, rows: int, columns: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Slices of heads and rows: several whole heads, or several rows of one head.

    A compiler unrolls the loop over blocks, so blocks are larger while compiling.
    """
    scores = BLOCK_SCORES_CPU if device.type == "cpu" and not torch.compiler.is_compiling() else BLOCK_SCORES
    some_heads = max(1, scores // (rows * columns))
    some_rows = max(1, scores // columns) if some_heads == 1 else rows
    for head in range(0, heads, some_heads):
        for row in range(0, rows, some_rows):
            yield slice(head, head + some_heads), slice(row, row + some_rows)


RULES: dict[Any, Callable[..., Pair | None]] = {
    **dict.fromkeys((torch.add, Tensor.add, torch.sub, Tensor.sub), _sum),
    **dict.fromkeys((torch.mul, Tensor.mul, torch.matmul, Tensor.matmul, torch.bmm, Tensor.bmm), _product),
    **dict.fromkeys((torch.div, Tensor.div), _quotient),
    **dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d), _affine),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _affine),
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), _softmax),
    F.scaled_dot_product_attention: _exact_attention,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.silu: _silu,
    F.gelu: _gelu,
}
FLASH_RULES = RULES | {F.scaled_dot_product_attention: _flash_attention}

# Python functions of PyTorch that call others: a mode sees them as one function, so their parts would have no rules.
COMPOSITES = frozenset({F.multi_head_attention_forward})
