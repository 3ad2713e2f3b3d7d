"""LoRA and discriminators on networks of other packages, which have no parts of diffusers."""

import pytest
import torch
from torch import Tensor, nn

from distill.methods.discriminator import Discriminator, middle_block
from distill.methods.jvp import finite_difference, jvp
from teachers.core.denoiser import Denoiser
from teachers.core.trigflow import Flow
from teachers.networks.adapters import Adapted, LoraBase


class Tokens(nn.Module):
    """A transformer on tokens (B, 6, 8) with other names of arguments, and positions in float64."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.register_buffer("positions", torch.linspace(0, 1, 6, dtype=torch.float64)[:, None], persistent=False)

    def forward(self, noisy: Tensor, when: Tensor) -> Tensor:
        hidden = noisy + self.positions.to(noisy.dtype) + when[:, None, None].to(noisy.dtype) / 1000
        return self.body(hidden)


def call(network, sample, timestep, cond):
    return network(noisy=sample, when=timestep)


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(Tokens().eval(), Flow(), "flow_prediction", call=call).eval()


X, T = torch.randn(2, 6, 8), torch.tensor([0.5, 1.0])


def test_adapters_apply_with_and_without_gradients(denoiser):
    """PyTorch's fused path of a transformer layer would skip the adapters on its linear layers."""
    base = LoraBase(denoiser.network, 4, [])
    denoiser.network = Adapted(base)
    assert not any("self_attn" in name for name in base.ranks) and len(base.ranks) == 4
    student = Adapted(base, new_adapter=True)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with_gradient = student(X, T)
    with_gradient.sum().backward()
    assert all(p.grad is not None for p in student.parameters())
    with torch.no_grad():
        without = student(X, T)
        unchanged = denoiser.network(X, T)
    torch.testing.assert_close(without, with_gradient)
    assert (without - unchanged).abs().max() > 1e-2
    torch.testing.assert_close(student.merged_copy()(X, T), without)


def test_tangent_of_an_adapter(denoiser):
    base = LoraBase(denoiser.network, 4, [])
    student = Adapted(base, new_adapter=True).double()
    base.base.double()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    function = lambda x: student(x, T.double())  # noqa: E731
    _, exact = jvp(function, (X.double(),), (X.double().flip(1),))
    _, approximate = finite_difference(function, (X.double(),), (X.double().flip(1),), 1e-6)
    assert (exact - approximate).norm() < 1e-6 * exact.norm()


def test_a_family_names_the_layer_of_its_discriminator(denoiser):
    with pytest.raises(ValueError, match=r"Tokens has no child named .*; its family can name one \(feature_layer\)"):
        Discriminator(denoiser, (X[:1], T[:1], {}))
    with pytest.raises(ValueError, match=r"must be a submodule of Tokens, got 'body\.layers\.7'"):
        middle_block(denoiser.network, "body.layers.7")
    discriminator = Discriminator(denoiser, (X[:1], T[:1], {}), "body.layers.0")
    assert discriminator(denoiser, X, T, {}).shape == (2,)
    assert middle_block(denoiser.network, "body.layers.0") is denoiser.network.body.layers[0]


def test_float64_buffers_do_not_change_the_precision_of_the_velocity(denoiser):
    assert denoiser.velocity(X, T, {}).dtype == torch.float32
    _, slope = jvp(lambda x: denoiser.velocity(x, T, {}), (X,), (X,))
    assert slope.dtype == torch.float32
