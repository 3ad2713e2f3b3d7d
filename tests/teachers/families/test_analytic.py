"""Closed forms of Gaussian mixtures against numerical results."""

import torch

from teachers.families.analytic import MIXTURES, Analytic, Mixture


def test_posterior_mean_follows_from_the_score():
    """Tweedie's formula: E[X0 | x] = (x + sigma^2 score) / alpha, the score by autograd of the exact log density."""
    mixture = MIXTURES["eight_gaussians"]()
    x = torch.randn(50, 2, dtype=torch.float64).requires_grad_()
    alpha, sigma = torch.full((50,), 0.8).double(), torch.full((50,), 0.6).double()
    variance = (0.8 * mixture.std) ** 2 + 0.36
    squared = (x[:, None] - 0.8 * mixture.means).square().sum(-1)
    log_density = torch.logsumexp(mixture.log_weights - squared / (2 * variance), dim=1)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    assert torch.allclose(mixture.posterior_mean(x, alpha, sigma), (x + 0.36 * score) / 0.8, atol=1e-10)


def test_mixtures_have_zero_mean_and_unit_variance():
    for build in MIXTURES.values():
        samples = build().sample(20000, torch.Generator().manual_seed(0))
        assert samples.mean(0).abs().max() < 0.05
        assert abs(samples.square().mean().item() - 1) < 0.05


def test_posterior_mean_of_one_gaussian_is_linear():
    mixture = Mixture(torch.zeros(1, 3), 0.5)
    x, alpha, sigma = torch.randn(4, 3).double(), torch.tensor([0.6]).double(), torch.tensor([0.8]).double()
    expected = x * 0.6 * 0.25 / (0.36 * 0.25 + 0.64)
    assert torch.allclose(mixture.posterior_mean(x, alpha, sigma), expected)


def test_velocity_is_finite_at_both_ends():
    teacher = Analytic(MIXTURES["checkerboard"]())
    x = torch.randn(8, 2, dtype=torch.float64)
    for angle in (1e-3, 1.57):
        assert teacher.velocity(x, torch.full((8,), angle, dtype=torch.float64), {}).isfinite().all()
