"""f-distill against closed forms: two Gaussians, whose density ratio and divergences are known."""

import math

import pytest
import torch
from torch import nn

from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from distill.methods.f_distill import WEIGHTS, FDistill, FDistillOptions
from teachers.families.analytic import Analytic, ExactDenoiser, Mixture, MixtureNetwork, eight_gaussians

CPU = torch.device("cpu")
REAL, FAKE = (0.0, 1.0), (0.7, 0.8)  # mean and standard deviation of clean data
FUNCTIONS = {  # f of E_q[f(p / q)]
    "reverse_kl": lambda r: -r.log(),
    "softened_reverse_kl": lambda r: (r + 1) * (0.5 + 0.5 / r).log(),
    "jensen_shannon": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "squared_hellinger": lambda r: 1 - r.sqrt(),
    "forward_kl": lambda r: r * r.log(),
    "jeffreys": lambda r: (r - 1) * r.log(),
}
divergences = pytest.mark.parametrize("divergence", FUNCTIONS)


def log_density(data, x_t, t):
    """Of noisy data cos t x0 + sin t z with x0 ~ N(mean, std^2)."""
    mean, std = data
    variance = (t.cos() * std) ** 2 + t.sin() ** 2
    return -((x_t[:, 0] - t.cos() * mean) ** 2) / (2 * variance) - 0.5 * torch.log(2 * math.pi * variance)


class ExactRatio(nn.Module):
    """The optimal discriminator: its logit is log p - log q."""

    def forward(self, denoiser, x_t, t, cond):
        return log_density(REAL, x_t, t) - log_density(FAKE, x_t, t)


def method(**options) -> FDistill:
    torch.manual_seed(0)
    teacher = Analytic(Mixture(torch.full((1, 1), REAL[0]), REAL[1]))
    found = FDistill(teacher, 1.0, FDistillOptions(ratio_limit=1e6, **options))
    path = teacher.denoiser.path
    fake = MixtureNetwork(Mixture(torch.full((1, 1), FAKE[0]), FAKE[1]), path, "flow_prediction")
    found.fake_score, found.discriminator = ExactDenoiser(fake, path, "flow_prediction"), ExactRatio()
    return found


@divergences
def test_weight_is_the_second_derivative_of_f_times_the_squared_ratio(divergence):
    r = torch.linspace(0.05, 8, 50, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(FUNCTIONS[divergence](r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    assert torch.allclose(WEIGHTS[divergence](r), second * r.square(), atol=1e-10)
    assert abs(FUNCTIONS[divergence](torch.ones(()).double()).item()) < 1e-12  # D_f = 0 for equal distributions


@divergences
@pytest.mark.first_is_quick
def test_weight_of_known_gaussians_is_a_function_of_the_analytic_ratio(divergence):
    x_t = torch.linspace(-2, 2, 32, dtype=torch.float64)[:, None]
    t = torch.linspace(0.2, 1.4, 32, dtype=torch.float64)
    ratio = torch.exp(log_density(REAL, x_t, t) - log_density(FAKE, x_t, t))
    assert torch.allclose(method(divergence=divergence).weight(x_t, t, {}), WEIGHTS[divergence](ratio), atol=1e-12)


@divergences
@pytest.mark.first_is_quick
def test_expected_gradient_is_that_of_the_divergence(divergence):
    """Theorem 1 by quadrature: dD_f(p_t | q_t) / dmean of a student x = mean + std z, in float64."""
    x_t, angle = torch.linspace(-9, 9, 20001, dtype=torch.float64)[:, None], 0.8
    t = torch.full((len(x_t),), angle, dtype=torch.float64)
    mean = torch.tensor(FAKE[0], dtype=torch.float64, requires_grad=True)
    q = log_density((mean, FAKE[1]), x_t, t).exp()
    ratio = log_density(REAL, x_t, t).exp() / q
    width = 18 / 20000
    (expected,) = torch.autograd.grad((q * FUNCTIONS[divergence](ratio)).sum() * width, mean)
    gradient, _ = method(divergence=divergence, weighting="uniform").gradient(x_t, x_t, t, {})
    # x0_fake - x0_real = (s_fake - s_real) sin^2 t / cos t, and dx_t / dmean = cos t
    scores = gradient[:, 0] * math.cos(angle) / math.sin(angle) ** 2
    found = (q.detach() * scores).sum() * width * math.cos(angle)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert expected > 0  # the student's mean is too large


def test_the_reverse_divergence_is_dmd():
    x = torch.randn(16, 1, dtype=torch.float64)
    t = torch.linspace(0.2, 1.4, 16, dtype=torch.float64)
    ours = method(divergence="reverse_kl")
    for one, two in zip(ours.gradient(x, x, t, {}), DMD.gradient(ours, x, x, t, {}), strict=True):
        assert torch.equal(one, two)


def test_the_ratio_is_limited_on_both_sides():
    ours = method(divergence="forward_kl")
    ours.options.ratio_limit = 2.0
    x_t = torch.tensor([[-6.0], [0.0], [6.0]], dtype=torch.float64)
    weight = ours.weight(x_t, torch.full((3,), 0.3, dtype=torch.float64), {})
    assert weight.min() >= 0.5 and weight.max() == 2.0


def test_each_phase_trains_its_networks_and_the_loss_is_weighted():
    torch.manual_seed(0)
    ours = FDistill(Analytic(eight_gaussians()), 1.0, FDistillOptions())
    images = eight_gaussians().sample(16, torch.Generator().manual_seed(0)).float()
    ready = Batch({}, BatchRandom(("f",), 0, 16, 16, CPU), images)
    ours("student", ready, 0)[0].backward()
    assert all(p.grad is not None for p in ours.student.parameters())
    assert all(p.grad is None for m in (ours.fake_score, ours.discriminator) for p in m.parameters())
    ours.zero_grad()
    ours("fake_score", ready, 0)[0].backward()
    assert all(p.grad is not None for m in (ours.fake_score, ours.discriminator) for p in m.parameters())
    assert ours.needs_latents(ours.options) and ours.phases(0) == ("fake_score", "fake_score", "student")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gan_weight": 0.0}, "gan_weight must be above 0, because the discriminator estimates the ratio, got 0"),
        ({"divergence": "kl"}, "divergence must be one of reverse_kl, .*, got 'kl'"),
        ({"ratio_limit": 0.5}, "ratio_limit must be at least 1, got 0.5"),
        ({"fake_score_updates": 0}, "fake_score_updates must be at least 1, got 0"),
    ],
)
def test_options_check_themselves(options, message):
    with pytest.raises(ValueError, match=message):
        FDistillOptions(**options)


def test_every_option_of_dmd_is_an_option():
    assert set(vars(DMDOptions())) < set(vars(FDistillOptions()))


def test_the_discriminator_must_be_trained_where_the_ratio_is_read():
    with pytest.raises(ValueError, match=r"gan_noise_range must include noise_range \[0\.02, 0\.98\]"):
        FDistillOptions(gan_noise_range=(0.1, 0.9))
