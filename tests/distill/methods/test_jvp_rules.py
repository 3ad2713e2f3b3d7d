"""The rules of `distill.methods.jvp_rules` against PyTorch's forward mode."""

import copy
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill.methods import jvp_rules
from distill.methods.jvp import finite_difference, jvp


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).double().norm() / expected.double().norm()).item()


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def check(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
    """Compare the rules with PyTorch's forward mode at random points and directions."""
    primals, tangents = (tuple(randn(*shape) for shape in shapes) for _ in range(2))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        expected = torch.func.jvp(function, primals, tangents)
    for actual, desired in zip(jvp(function, primals, tangents), expected, strict=True):
        torch.testing.assert_close(actual, desired, atol=1e-10, rtol=1e-10)


X = (2, 6, 5, 5)
C, D, V = randn(*X), randn(3, 5, 5), randn(6)
ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dual_dual": lambda x, y: (x + y) * (x - y) / (2 + y * y),
    "dual_constant": lambda x, y: ((x + C) * C - C) / C,
    "constant_dual": lambda x, y: (C + x) * (C - x) + C / x,
    "scalar": lambda x, y: (1 - (2 * x + 1) / 3 - 4) * 2,
    "broadcast_up": lambda x, y: (x[:, :, None] + D) * (x[:, :, None] - D) / D,
    "broadcast_down": lambda x, y: (x + V[:, None, None]) * V[:, None, None] * y[:, :1],
    "alpha": lambda x, y: torch.add(x, C, alpha=2) - torch.sub(C, x, alpha=3),
    "functions": lambda x, y: torch.div(torch.mul(torch.add(x, 1), torch.sub(y, 2)), 3),
    "rounding": lambda x, y: x * torch.div(x, 0.3, rounding_mode="floor"),
    "keywords": lambda x, y: torch.mul(input=x, other=y),
    "in_place": lambda x, y: (x + 1).mul_(y).add_(x).div_(2) * x,
    "integers": lambda x, y: x * torch.arange(5) + y / torch.arange(1, 6),
    "matmul": lambda x, y: x @ y + torch.matmul(x, C) + C @ y + x @ torch.eye(5).double() + (V[:5] @ x)[..., None],
    "bmm": lambda x, y: torch.bmm(x[0], y[0]) + x[1].bmm(C[0]) + C[0].bmm(y[1]),
    "silu": lambda x, y: F.silu(x) * F.silu(y * 3, inplace=True) + F.silu(C),
    "gelu": lambda x, y: F.gelu(x) + F.gelu(y, approximate="tanh"),
    "softmax": lambda x, y: F.softmax(x, -1) * x.softmax(dim=1) * torch.softmax(y, 2) * nn.Softmax(-1)(y),
    "softmax_dtype": lambda x, y: x.softmax(-1, dtype=torch.float64) * torch.softmax(y, -1, torch.float64),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_elementwise_rules(name: str) -> None:
    check(ARITHMETIC[name], X, X)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [3, 12])  # a weight larger and smaller than the input, which are computed differently
def test_affine_rules(size: int, bias: bool) -> None:
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=bias).double()
    wide = nn.Conv2d(6, 32, 3, padding="same", dilation=2, bias=bias).double()
    check(lambda x: wide(x)[:, :8, ::2, ::2] * conv(x), (2, 6, size, size))
    check(wide, (6, size, size))
    linear = nn.Linear(size, 7, bias=bias).double()
    check(lambda x, y, z: linear(x) * linear(y) + linear(z), (size,), (2, size), (4, 2, size))


CONVOLUTIONS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d, (9,)),
    "conv3d": (nn.Conv3d, (3, 5, 4)),
    "conv_transpose1d": (nn.ConvTranspose1d, (7,)),
    "conv_transpose2d": (nn.ConvTranspose2d, (4, 5)),
    "conv_transpose3d": (nn.ConvTranspose3d, (2, 3, 4)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_rules_of_convolutions(name: str, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few and many channels, which are computed differently, and without a batch; the rule is used."""
    kind, size = CONVOLUTIONS[name]
    used = []
    function = getattr(F, name)
    rule = jvp_rules.RULES[function]
    monkeypatch.setitem(jvp_rules.RULES, function, lambda *a, **k: used.append(1) or rule(*a, **k))
    for channels in (4, 64):
        layer: Any = kind(4, channels, 3, stride=2, padding=1, groups=2, bias=bias).double()  # type: ignore[call-arg]
        check(lambda x, layer=layer: layer(x).sin(), (2, 4, *size))
        check(layer, (4, *size))
        primal, tangent = (randn(2, 4, *size),), (randn(2, 4, *size),)
        _, exact = jvp(layer, primal, tangent)
        _, slope = finite_difference(layer, primal, tangent, step=1e-3)  # exact for an affine map but for rounding
        torch.testing.assert_close(exact, slope, atol=1e-10, rtol=1e-10)
    assert len(used) >= 6


def test_norm_rules() -> None:
    group, instance = nn.GroupNorm(3, 6).double(), nn.GroupNorm(2, 6, affine=False).double()
    layer, plain = nn.LayerNorm(5).double(), nn.LayerNorm((5, 5), elementwise_affine=False).double()
    rms, bare = nn.RMSNorm(5).double(), nn.RMSNorm((5, 5), eps=0.1, elementwise_affine=False).double()
    with torch.no_grad():
        for norm in (group, layer, rms):
            for parameter in norm.parameters():
                parameter.copy_(torch.randn_like(parameter))
    for shape in (X, (2, 6, 25), (2, 6)):
        check(lambda x: group(x + 2) + instance(x) * x, shape)
    for pair in ((layer, plain), (rms, bare)):
        check(lambda x, pair=pair: pair[0](x + 2) + pair[1](x) * x, X)
        check(lambda x, pair=pair: pair[0](x.transpose(-1, -2)) * pair[1](x.mT), X)

    def strided(copy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: group(copy(x.transpose(2, 3))) + instance(copy(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    primals, tangents = (randn(*X),), (randn(*X),)  # PyTorch's formula needs contiguous tensors here
    ours = jvp(strided(lambda x: x), primals, tangents)
    layout = jvp(strided(lambda x: x), *((x[0].to(memory_format=torch.channels_last),) for x in (primals, tangents)))
    for found in (ours, layout):
        expected = jvp(lambda x: group(x.mT.contiguous()) + instance(x.contiguous()), primals, tangents)
        torch.testing.assert_close(found, expected)


MASK = torch.rand(2, 1, 4, 5) < 0.7
MASK[..., 0] = True
ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.7},
    "bool": {"attn_mask": MASK},
    "float": {"attn_mask": randn(3, 4, 5)},
    "causal": {"is_causal": True},
    "causal_scale": {"is_causal": True, "scale": 1.3},
}


@pytest.mark.parametrize("scores", [1, 13, 45, 10**6])  # blocks of one row, some rows, some heads, everything
@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.first_is_quick
def test_attention_rule(name: str, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jvp_rules, "BLOCK_SCORES_CPU", scores)
    options = ATTENTION[name]
    shapes = (2, 3, 4, 6), (2, 3, 5, 6), (2, 3, 5, 7)
    q, k, v = (randn(*shape) for shape in shapes)
    attention = F.scaled_dot_product_attention
    check(lambda q, k, v: attention(q, k, v, **options), *shapes)
    check(lambda q: attention(q, k, v, **options), shapes[0])
    check(lambda k: attention(q, k, v, **options), shapes[1])
    check(lambda v: attention(q, k, v, **options), shapes[2])
    check(lambda q, v: attention(q, k, v, **options), shapes[0], shapes[2])
    strided = (2, 4, 3, 6), (2, 5, 3, 6), (2, 5, 3, 7)
    check(lambda q, k, v: attention(*(x.transpose(1, 2) for x in (q, k, v)), **options), *strided)


def test_attention_rule_special_cases() -> None:
    attention, shape = F.scaled_dot_product_attention, (2, 4, 5, 6)
    check(lambda q, k, v: attention(q, k, v, enable_gqa=True), shape, (2, 2, 3, 6), (2, 2, 3, 6))
    check(attention, (5, 6), (4, 6), (4, 6))
    check(attention, shape, (1, 4, 3, 6), (4, 3, 6))
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    value, derivative = jvp(lambda q: attention(q, q, q, attn_mask=mask), (randn(*shape),), (randn(*shape),))
    assert value.isfinite().all() and derivative.isfinite().all()
    assert not value[:, :, 2].any() and not derivative[:, :, 2].any()
    with pytest.raises(ValueError, match="eval mode"):
        jvp(lambda q: attention(q, q, q, dropout_p=0.1), (randn(*shape),), (randn(*shape),))


def test_dual_parameters_use_pytorchs_formulas() -> None:
    check(lambda x, w, b: F.conv2d(x, w, b, padding=1), X, (4, 6, 3, 3), (4,))
    check(lambda x, w, b: F.linear(x, w, b) * F.layer_norm(x, (5,), b, b) * F.rms_norm(x, (5,), b), X, (5, 5), (5,))
    check(lambda x, w: F.group_norm(x, 2, w, w), X, (6,))
    check(lambda x, y: x / y, X, X)


def test_fused_attention_is_used_only_for_supported_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel needs a GPU; a PyTorch function with its signature replaces it here."""
    calls: list[tuple[int, ...]] = []

    class JVPAttn:
        @staticmethod
        def forward(q, k, v, dq, dk, dv, mask, dropout, causal, scale):  # type: ignore[no-untyped-def]
            calls.append(tuple(q.shape))
            assert {x.dtype for x in (q, k, v, dq, dk, dv)} == {torch.float32}
            assert mask is None and dropout == 0.0 and not causal
            p = torch.softmax(scale * q @ k.mT, -1)
            ds = scale * (dq @ k.mT + q @ dk.mT)
            value, derivative = p @ v, p * (ds - (p * ds).sum(-1, keepdim=True)) @ v + p @ dv
            return value, SimpleNamespace(o_t=derivative)

    kernel = SimpleNamespace(JVPAttn=JVPAttn)
    monkeypatch.setitem(sys.modules, "jvp_flash_attention", SimpleNamespace(jvp_attention=kernel))
    monkeypatch.setitem(sys.modules, "jvp_flash_attention.jvp_attention", kernel)

    def attention(x: Tensor, keys: int) -> Tensor:
        return F.scaled_dot_product_attention(x, x[..., :keys, :], x[..., :keys, :].sin(), scale=0.3)

    for shape, keys, heads in (
        ((2, 3, 32, 16), 32, 16),
        ((2, 3, 32, 16), 20, None),  # cross-attention
        ((2, 3, 33, 16), 33, None),
        ((2, 3, 32, 24), 32, 32),  # padded
        ((2, 3, 32, 6), 32, 16),
        ((1, 1, 32, 264), 32, None),
    ):
        calls.clear()
        x, dx = torch.randn(shape), torch.randn(shape)
        plain = jvp(partial(attention, keys=keys), (x,), (dx,))
        function = partial(attention, keys=keys)
        half = jvp(function, (x.bfloat16(),), (dx.bfloat16(),), flash=True, precision="bf16")
        assert relative_error(half[0], plain[0]) < 2e-2 and relative_error(half[1], plain[1]) < 2e-2
        assert calls == ([(*shape[:3], heads)] if heads else [])
        calls.clear()
        value, derivative = jvp(function, (x,), (dx,), flash=True)
        assert calls == ([(*shape[:3], heads)] if heads else [])
        assert relative_error(value, plain[0]) < 1e-5 and relative_error(derivative, plain[1]) < 1e-5


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.RMSNorm(4)], ids=str)
def test_norms_with_half_precision_parameters_are_in_float32_under_autocast(norm: nn.Module) -> None:
    x, dx = torch.randn(2, 4, 4), torch.randn(2, 4, 4)
    expected = jvp(norm, (x.bfloat16().float(),), (dx.bfloat16().float(),))
    found = jvp(copy.deepcopy(norm).bfloat16(), (x.bfloat16(),), (dx.bfloat16(),), precision="bf16")
    assert all(y.dtype == torch.float32 and relative_error(y, z) < 1e-6 for y, z in zip(found, expected, strict=True))
