"""`distill.methods.jvp` against float64 differences and PyTorch's forward mode, for rules and for networks."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill.methods import jvp as jvp_module
from distill.methods import jvp_rules
from distill.methods.discriminator import middle_block, tokens
from distill.methods.jvp import finite_difference, jvp, jvp_flash, tangent

Build = tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, tuple[int, ...]]]


def _unet() -> nn.Module:
    blocks = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
        down_block_types=blocks[0], up_block_types=blocks[1],
    )  # fmt: skip


def _unet_condition() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
        cross_attention_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def _dit() -> nn.Module:
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        num_embeds_ada_norm=10,
    )  # fmt: skip


def _pixart() -> nn.Module:
    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8, cross_attention_dim=16,
        caption_channels=8, use_additional_conditions=False,
    )  # fmt: skip


def _sd3() -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=8,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip


def _flux() -> nn.Module:
    return FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


def _sana() -> nn.Module:
    return SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=8,
        sample_size=8,
    )  # fmt: skip


TEXT = {"encoder_hidden_states": (2, 5, 8)}
POOLED = {**TEXT, "pooled_projections": (2, 8)}
IMAGE = (2, 4, 8, 8)
NETWORKS: dict[str, Build] = {
    "unet": (_unet, (2, 3, 8, 8), {}),
    "unet_condition": (_unet_condition, IMAGE, TEXT),
    "dit": (_dit, IMAGE, {}),
    "pixart": (_pixart, IMAGE, TEXT),
    "sd3": (_sd3, IMAGE, POOLED),
    "flux": (_flux, (2, 16, 4), {**POOLED, "img_ids": (16, 3), "txt_ids": (5, 3)}),
    "sana": (_sana, IMAGE, TEXT),
}


def _build(name: str) -> tuple[nn.Module, Callable[..., Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A float64 network with random weights, its function of (x, timestep), a point and a direction."""
    torch.manual_seed(0)
    make, shape, conditions = NETWORKS[name]
    network = make().double().eval()
    with torch.no_grad():
        for parameter in network.parameters():  # newly initialised networks end in zeros, which would hide errors
            parameter.add_(0.2 * torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
    cond = {key: torch.randn(size).double() for key, size in conditions.items()}
    if name == "dit":
        cond["class_labels"] = torch.tensor([1, 2])
    if name == "pixart":
        cond["encoder_attention_mask"] = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).double()

    def function(x: Tensor, t: Tensor) -> Tensor:
        types = {key: value.to(x.dtype) if value.is_floating_point() else value for key, value in cond.items()}
        out: Tensor = network(x, timestep=t, **types, return_dict=False)[0]
        return out

    primals = torch.randn(shape).double(), torch.tensor([0.3, 0.6]).double()
    return network, function, primals, (torch.randn(shape).double(), torch.tensor([1.0, -0.7]).double())


def _error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).double().norm() / expected.double().norm()).item()


@pytest.fixture
def float64_inside(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Replaces diffusers' float32 time embeddings and RMS norms by float64: float32 is too coarse for a difference."""
    original = Tensor.to

    def to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return original(x, *(torch.float64 if arg is torch.float32 else arg for arg in args), **kwargs)

    monkeypatch.setattr(Tensor, "float", Tensor.double)
    monkeypatch.setattr(Tensor, "to", to)
    return monkeypatch


@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_of_networks(name: str, float64_inside: pytest.MonkeyPatch) -> None:
    network, function, primals, tangents = _build(name)
    with torch.no_grad():
        eager = function(*primals)
    value, derivative = jvp(function, primals, tangents)
    _, expected = finite_difference(function, primals, tangents, step=1e-6)
    assert _error(value, eager) < 1e-6
    assert _error(derivative, expected) < 1e-6
    for primal in range(2):  # both directions contribute
        one = tuple(d if i == primal else torch.zeros_like(d) for i, d in enumerate(tangents))
        assert jvp(function, primals, one)[1].norm() > 1e-3 * derivative.norm()

    float64_inside.undo()
    network.float()
    single = jvp(function, *(tuple(x.float() for x in xs) for xs in (primals, tangents)))
    assert single[1].dtype == torch.float32
    assert _error(single[0], value) < 1e-5
    assert _error(single[1], derivative) < 1e-4


@pytest.mark.parametrize("channels_last", [False, True])
def test_network_against_torch_func(channels_last: bool) -> None:
    network, function, primals, tangents = _build("unet_condition")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        expected = torch.func.jvp(function, primals, tangents)
    if channels_last:
        network.to(memory_format=torch.channels_last)
        primals = primals[0].to(memory_format=torch.channels_last), primals[1]
    for actual, desired in zip(jvp(function, primals, tangents), expected, strict=True):
        torch.testing.assert_close(actual, desired, atol=1e-6, rtol=1e-6)


def test_any_attention_processor_and_checkpointing_give_the_same_result() -> None:
    network, function, primals, tangents = _build("unet_condition")
    expected = jvp(function, primals, tangents)
    network.set_attn_processor({name: AttnProcessor() for name in network.attn_processors})
    network.enable_gradient_checkpointing()
    network.train()
    for actual, desired in zip(jvp(function, primals, tangents), expected, strict=True):
        torch.testing.assert_close(actual, desired)


def test_no_gradient_is_recorded() -> None:
    network, function, primals, tangents = _build("unet_condition")
    function(*primals).mean().backward()
    before = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    primals = primals[0].clone().requires_grad_(), primals[1]
    value, derivative = jvp(function, primals, tangents)
    assert not value.requires_grad and not derivative.requires_grad
    after = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert function(*primals).requires_grad  # an ordinary forward pass still does


def test_autocast_is_off_inside() -> None:
    network, function, primals, tangents = _build("unet_condition")
    network.float()
    primals, tangents = (tuple(x.float() for x in xs) for xs in (primals, tangents))
    expected = jvp(function, primals, tangents)
    with torch.autocast("cpu", torch.bfloat16):
        found = jvp(function, primals, tuple(d.double() for d in tangents))  # converted to the primal's type
        difference = finite_difference(function, primals, tangents)
        assert function(*primals).dtype == torch.bfloat16  # autocast is active again
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert difference[1].dtype == torch.float32 and _error(difference[1], expected[1]) < 1e-2


def test_expanded_primals_and_constant_outputs() -> None:
    x, d = torch.tensor(2.0).expand(3), torch.tensor(0.5).expand(3)
    value, derivative = jvp(lambda a: a.clone().mul_(a), (x,), (d,))
    torch.testing.assert_close((value, derivative), (torch.full((3,), 4.0), torch.full((3,), 2.0)))
    assert x[0] == 2.0
    assert torch.equal(jvp(lambda a: torch.ones(2), (x,), (d,))[1], torch.zeros(2))
    with torch.inference_mode(), pytest.raises(ValueError, match="no_grad"):
        jvp(torch.sin, (x,), (d,))


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _check(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
    """Compare the rules with PyTorch's forward mode at random points and directions."""
    primals, tangents = (tuple(_randn(*shape) for shape in shapes) for _ in range(2))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        expected = torch.func.jvp(function, primals, tangents)
    for actual, desired in zip(jvp(function, primals, tangents), expected, strict=True):
        torch.testing.assert_close(actual, desired, atol=1e-10, rtol=1e-10)


X = (2, 6, 5, 5)
C, D, V = _randn(*X), _randn(3, 5, 5), _randn(6)
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
    _check(ARITHMETIC[name], X, X)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [3, 12])  # a weight larger and smaller than the input, which are computed differently
def test_affine_rules(size: int, bias: bool) -> None:
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=bias).double()
    wide = nn.Conv2d(6, 32, 3, padding="same", dilation=2, bias=bias).double()
    _check(lambda x: wide(x)[:, :8, ::2, ::2] * conv(x), (2, 6, size, size))
    _check(wide, (6, size, size))
    linear = nn.Linear(size, 7, bias=bias).double()
    _check(lambda x, y, z: linear(x) * linear(y) + linear(z), (size,), (2, size), (4, 2, size))


def test_norm_rules() -> None:
    group, instance = nn.GroupNorm(3, 6).double(), nn.GroupNorm(2, 6, affine=False).double()
    layer, plain = nn.LayerNorm(5).double(), nn.LayerNorm((5, 5), elementwise_affine=False).double()
    rms, bare = nn.RMSNorm(5).double(), nn.RMSNorm((5, 5), eps=0.1, elementwise_affine=False).double()
    with torch.no_grad():
        for norm in (group, layer, rms):
            for parameter in norm.parameters():
                parameter.copy_(torch.randn_like(parameter))
    for shape in (X, (2, 6, 25), (2, 6)):
        _check(lambda x: group(x + 2) + instance(x) * x, shape)
    for pair in ((layer, plain), (rms, bare)):
        _check(lambda x, pair=pair: pair[0](x + 2) + pair[1](x) * x, X)
        _check(lambda x, pair=pair: pair[0](x.transpose(-1, -2)) * pair[1](x.mT), X)

    def strided(copy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: group(copy(x.transpose(2, 3))) + instance(copy(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    primals, tangents = (_randn(*X),), (_randn(*X),)  # PyTorch's formula needs contiguous tensors here
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
    "float": {"attn_mask": _randn(3, 4, 5)},
    "causal": {"is_causal": True},
    "causal_scale": {"is_causal": True, "scale": 1.3},
}


@pytest.mark.parametrize("scores", [1, 13, 45, 10**6])  # blocks of one row, some rows, some heads, everything
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_rule(name: str, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jvp_rules, "BLOCK_SCORES_CPU", scores)
    options = ATTENTION[name]
    shapes = (2, 3, 4, 6), (2, 3, 5, 6), (2, 3, 5, 7)
    q, k, v = (_randn(*shape) for shape in shapes)
    attention = F.scaled_dot_product_attention
    _check(lambda q, k, v: attention(q, k, v, **options), *shapes)
    _check(lambda q: attention(q, k, v, **options), shapes[0])
    _check(lambda k: attention(q, k, v, **options), shapes[1])
    _check(lambda v: attention(q, k, v, **options), shapes[2])
    _check(lambda q, v: attention(q, k, v, **options), shapes[0], shapes[2])
    strided = (2, 4, 3, 6), (2, 5, 3, 6), (2, 5, 3, 7)
    _check(lambda q, k, v: attention(*(x.transpose(1, 2) for x in (q, k, v)), **options), *strided)


def test_attention_rule_special_cases() -> None:
    attention, shape = F.scaled_dot_product_attention, (2, 4, 5, 6)
    _check(lambda q, k, v: attention(q, k, v, enable_gqa=True), shape, (2, 2, 3, 6), (2, 2, 3, 6))
    _check(attention, (5, 6), (4, 6), (4, 6))
    _check(attention, shape, (1, 4, 3, 6), (4, 3, 6))
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    value, derivative = jvp(lambda q: attention(q, q, q, attn_mask=mask), (_randn(*shape),), (_randn(*shape),))
    assert value.isfinite().all() and derivative.isfinite().all()
    assert not value[:, :, 2].any() and not derivative[:, :, 2].any()
    with pytest.raises(ValueError, match="eval mode"):
        jvp(lambda q: attention(q, q, q, dropout_p=0.1), (_randn(*shape),), (_randn(*shape),))


def test_dual_parameters_use_pytorchs_formulas() -> None:
    _check(lambda x, w, b: F.conv2d(x, w, b, padding=1), X, (4, 6, 3, 3), (4,))
    _check(lambda x, w, b: F.linear(x, w, b) * F.layer_norm(x, (5,), b, b) * F.rms_norm(x, (5,), b), X, (5, 5), (5,))
    _check(lambda x, w: F.group_norm(x, 2, w, w), X, (6,))
    _check(lambda x, y: x / y, X, X)


def test_finite_difference() -> None:
    calls: list[Tensor] = []

    def function(x: Tensor, t: Tensor) -> Tensor:
        calls.append(x)
        return torch.sin(3 * t) * x.tanh()

    x, t, dx, dt = (torch.randn(1000) for _ in range(4))
    exact = jvp(function, (x, t), (dx, dt))
    for exact_value, forwards in ((False, 2), (True, 3)):
        calls.clear()
        value, derivative = finite_difference(function, (x, t), (dx, dt), exact_value=exact_value)
        assert len(calls) == forwards
        assert _error(value, exact[0]) < 1e-6 * (1 - 0.9 * exact_value)
        assert _error(derivative, exact[1]) < 2e-3
    half = finite_difference(function, (x.bfloat16(), t.bfloat16()), (dx, dt))
    exact = jvp(function, (x.bfloat16().float(), t.bfloat16().float()), (dx, dt))
    assert half[1].dtype == torch.float32 and _error(half[1], exact[1]) < 2e-3


def test_tangents_are_chosen_by_name() -> None:
    assert tangent()[0] is tangent("auto")[0] is jvp and tangent("finite_difference")[0] is finite_difference
    assert "no CUDA device" in tangent()[1] and "from the recipe" in tangent("jvp")[1]
    with pytest.raises(ValueError, match="finite_difference"):
        tangent("backward")
    with pytest.raises(ValueError, match="CUDA"):
        tangent("jvp_flash")


@pytest.mark.parametrize("installed", [True, False])
def test_auto_uses_the_fused_kernel_if_it_is_installed(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jvp_module.importlib.util, "find_spec", lambda name: object() if installed else None)
    function, message = tangent("auto", "cuda")
    assert function is (jvp_flash if installed else jvp)
    assert "jvp-flash-attention" in message
    if not installed:
        with pytest.raises(ValueError, match="pip install"):
            tangent("jvp_flash", "cuda")


def test_fused_attention_is_used_only_for_supported_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel needs a GPU; a PyTorch function with its signature replaces it here."""
    calls: list[tuple[int, ...]] = []

    class JVPAttn:
        @staticmethod
        def forward(q, k, v, dq, dk, dv, mask, dropout, causal, scale):  # type: ignore[no-untyped-def]
            calls.append(tuple(q.shape))
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

    for shape, keys, fused in (
        ((2, 3, 32, 16), 32, True),
        ((2, 3, 32, 16), 20, False),  # cross-attention
        ((2, 3, 33, 16), 33, False),
        ((2, 3, 32, 24), 32, False),
    ):
        calls.clear()
        x, dx = torch.randn(shape), torch.randn(shape)
        plain = jvp(lambda x, k=keys: attention(x, k), (x,), (dx,))
        value, derivative = jvp_flash(lambda x, k=keys: attention(x, k), (x,), (dx,))
        assert calls == ([shape] if fused else [])
        assert _error(value, plain[0]) < 1e-5 and _error(derivative, plain[1]) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_middle_block_of_each_network_gives_feature_tokens(name: str) -> None:
    """`distill.methods.discriminator` on the same networks: tokens (B, N, C) that depend on the image."""
    network, function, (x, t), _ = _build(name)
    outputs: list[Tensor] = []
    hook = middle_block(network).register_forward_hook(lambda module, args, output: outputs.append(tokens(output)))
    with torch.no_grad():
        function(x, t), function(x + 0.1, t)
    hook.remove()
    assert outputs[0].ndim == 3 and outputs[0].shape[0] == 2
    assert not torch.allclose(outputs[0], outputs[1])
