"""`distill.methods.jvp` against float64 differences and PyTorch's forward mode, for rules and for networks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    DiTTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    LongCatImageTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.backends import cudnn
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill.methods import jvp as jvp_module
from distill.methods.discriminator import middle_block, tokens
from distill.methods.jvp import finite_difference, jvp, tangent

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


ROPE = {"num_layers": 2, "attention_head_dim": 12, "num_attention_heads": 2, "joint_attention_dim": 8}


def _qwen_image() -> nn.Module:
    network = QwenImageTransformer2DModel(in_channels=16, out_channels=4, axes_dims_rope=(4, 4, 4), **ROPE)
    network.forward = partial(network.forward, img_shapes=[[(1, 4, 4)]])
    return network


def _flux2() -> nn.Module:
    return Flux2Transformer2DModel(
        in_channels=4, num_single_layers=1, axes_dims_rope=(2, 4, 4, 2), guidance_embeds=False, **ROPE
    )


def _longcat_image() -> nn.Module:
    return LongCatImageTransformer2DModel(in_channels=4, num_single_layers=1, axes_dims_rope=[4, 4, 4], **ROPE)


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
    "qwen_image": (_qwen_image, (2, 16, 16), TEXT),
    "flux2": (_flux2, (2, 16, 4), {**TEXT, "img_ids": (16, 4), "txt_ids": (5, 4)}),
    "longcat_image": (_longcat_image, (2, 16, 4), {**TEXT, "img_ids": (16, 3), "txt_ids": (5, 3)}),
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
    if name == "qwen_image":  # its rotary embeddings are complex numbers
        cond["encoder_hidden_states_mask"] = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_any_attention_processor_and_checkpointing_give_the_same_result() -> None:
    network, function, primals, tangents = _build("unet_condition")
    expected = jvp(function, primals, tangents)
    network.set_attn_processor({name: AttnProcessor() for name in network.attn_processors})
    network.enable_gradient_checkpointing()
    network.train()
    for actual, desired in zip(jvp(function, primals, tangents), expected, strict=True):
        torch.testing.assert_close(actual, desired)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("derive", [finite_difference, jvp])
def test_derivatives_are_in_float32_with_cudnn_and_without_tf32(derive: Callable[..., Any]) -> None:
    settings = []

    def function(x: Tensor) -> Tensor:
        settings.append((cudnn.enabled, cudnn.allow_tf32, torch.get_float32_matmul_precision()))
        return x.sin()

    before = cudnn.enabled, cudnn.allow_tf32, torch.get_float32_matmul_precision()
    derive(function, (torch.ones(2),), (torch.ones(2),))
    assert set(settings) == {(True, False, "highest")}
    assert (cudnn.enabled, cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.first_is_quick
def test_bf16_tangent_is_near_the_exact_one(name: str) -> None:
    network, function, primals, tangents = _build(name)
    network.float()
    primals, tangents = (tuple(x.float() for x in xs) for xs in (primals, tangents))
    exact = jvp(function, primals, tangents)
    value, derivative = jvp(function, primals, tangents, precision="bf16")
    assert _error(value.float(), exact[0]) < 3e-2 and _error(derivative.float(), exact[1]) < 5e-2
    assert _error(derivative.float(), exact[1]) > 1e-4  # half precision was used


def test_tangents_are_chosen_by_name() -> None:
    assert tangent("finite_difference")[0] is finite_difference
    assert tangent()[1] == tangent("auto")[1] and "jvp in float32" in tangent()[1]
    assert "jvp in bf16" in tangent("jvp", precision="bf16")[1] and "jvp in tf32" in tangent("jvp", "cuda")[1]
    assert "jvp in float32" in tangent("jvp", "cpu", "tf32")[1]
    assert "no CUDA device" in tangent()[1] and "from the recipe" in tangent("jvp")[1]
    with pytest.raises(ValueError, match="finite_difference"):
        tangent("backward")
    with pytest.raises(ValueError, match="CUDA"):
        tangent("jvp_flash")


@pytest.mark.parametrize("installed", [True, False])
def test_auto_uses_the_fused_kernel_if_it_is_installed(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jvp_module.importlib.util, "find_spec", lambda name: object() if installed else None)
    function, message = tangent("auto", "cuda")
    assert isinstance(function, partial) and function.keywords == {"flash": installed, "precision": "tf32"}
    assert "jvp-flash-attention" in message
    if not installed:
        with pytest.raises(ValueError, match="pip install"):
            tangent("jvp_flash", "cuda")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.first_is_quick
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
