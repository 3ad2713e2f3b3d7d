"""MeanFlow (Geng et al. 2025, arXiv 2505.13447) with r = 0 is sCM: docs/explanation/mean_flow.md."""

import torch
from torch import nn

from distill.methods.scm import SCM, SCMOptions
from teachers.core.trigflow import Flow
from teachers.families.analytic import Analytic, ExactDenoiser, Mixture, eight_gaussians


class Smooth(nn.Module):
    """A flow network u(z, tau) in float64."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(8, 3, dtype=torch.float64, generator=generator))
        self.second = nn.Parameter(torch.randn(2, 8, dtype=torch.float64, generator=generator))

    def forward(self, sample, timestep, return_dict=True):
        inputs = torch.cat([sample, timestep[:, None] / 1000], dim=1)
        return (torch.tanh(inputs @ self.first.T) @ self.second.T,)


def gradients(loss, network):
    """The gradient of each sample's loss (B,), flat: (B, parameters)."""
    rows = [torch.autograd.grad(row, tuple(network.parameters()), retain_graph=True) for row in loss]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def points(count=16):
    generator = torch.Generator().manual_seed(1)
    z, tau = torch.randn(count, 2, dtype=torch.float64, generator=generator), torch.linspace(0.05, 0.95, count)
    return z, tau.double()


def test_gradient_of_scm_is_one_minus_tau_times_that_of_mean_flow():
    """Of every sample, with u the output of a flow network, tau the rectified-flow time and r = 0."""
    network, path = Smooth(), Flow()
    scm = SCM(Analytic(eight_gaussians()), 1.0, SCMOptions(adaptation_steps=0))
    scm.student = ExactDenoiser(network, path, "flow_prediction")
    z, tau = points()
    # MeanFlow: u_tgt = v - (tau - r) du/dtau with du/dtau along (v, 1) at r = 0 [6] [10]; loss |u - stop(u_tgt)|^2 [9]
    (v,) = scm.teacher.denoiser.network(z, 1000 * tau)
    u, slope = torch.func.jvp(lambda z, tau: network(z, 1000 * tau)[0], (z, tau), (v, torch.ones_like(tau)))
    mean_flow = (u - (v - tau[:, None] * slope).detach()).square().sum(1)
    # sCM at the same points, before the normalisation of its tangent
    t = path.angle(1000 * tau)
    x_t = z / path.scale(t)[:, None]
    g, _ = scm.target(x_t, t, scm.teacher.velocity(x_t, t, {}), {}, 1.0)
    velocity = scm.student.velocity(x_t, t, {})
    consistency = ((velocity - velocity.detach() - g) / scm.error_scale(t)[:, None]).square().sum(1)
    expected = (1 - tau)[:, None] * gradients(mean_flow, network)
    assert torch.allclose(gradients(consistency, network), expected, rtol=1e-8, atol=1e-10)
    assert expected.abs().max() > 0.1


def test_average_velocity_to_zero_is_the_consistency_function():
    """u(z, r = 0, tau) = (z - f) / tau: its mean-flow residual v - u - tau du/dtau vanishes for the exact flow map."""
    std, (z, tau) = 0.6, points()
    teacher = Analytic(Mixture(torch.zeros(1, 2), std))

    def average(z, tau):
        gain = std / torch.sqrt(((1 - tau) * std) ** 2 + tau**2)
        return (1 - gain[:, None]) * z / tau[:, None]

    (v,) = teacher.denoiser.network(z, 1000 * tau)
    u, slope = torch.func.jvp(average, (z, tau), (v, torch.ones_like(tau)))
    assert torch.allclose(u, v - tau[:, None] * slope, atol=1e-10)
