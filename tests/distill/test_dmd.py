"""DMD against closed forms."""

import torch

from distill.distiller import Batch
from distill.dmd import DMD, DMDOptions
from distill.draws import Draws
from teachers.analytic import Analytic, ExactDenoiser, Mixture, MixtureNetwork, eight_gaussians
from teachers.trigflow import add_noise

CPU = torch.device("cpu")


def distiller(**options) -> DMD:
    torch.manual_seed(0)
    return DMD(Analytic(eight_gaussians()), 1.0, DMDOptions(**options))


def batch(count=16, key=("test",)) -> Batch:
    return Batch({}, Draws(key, 0, count, count, CPU))


def test_gradient_is_zero_when_the_fake_score_is_the_teacher():
    method = distiller()
    method.fake_score = method.teacher.denoiser
    x = torch.randn(16, 2)
    t = torch.linspace(0.1, 1.5, 16)
    gradient, _ = method.gradient(x, add_noise(x, torch.randn(16, 2), t), t, {})
    assert gradient.abs().max() == 0


def test_gradient_is_the_analytic_difference_of_scores():
    """Student distribution known (another mixture): w_t alpha_t (s_fake - s_real), scores by Tweedie, in float64."""
    method = distiller()
    student_mixture = Mixture(torch.zeros(1, 2), 0.7)
    path = method.teacher.denoiser.path
    method.fake_score = ExactDenoiser(MixtureNetwork(student_mixture, path, "flow_prediction"), path, "flow_prediction")
    x = 0.7 * torch.randn(16, 2, dtype=torch.float64)
    t = torch.linspace(0.2, 1.4, 16, dtype=torch.float64)
    x_t = add_noise(x, torch.randn(16, 2, dtype=torch.float64), t)
    gradient, _ = method.gradient(x, x_t, t, {})

    def score(mixture):
        points = x_t.clone().requires_grad_()
        variance = (t.cos() * mixture.std) ** 2 + t.sin() ** 2
        squared = (points[:, None] - t.cos()[:, None, None] * mixture.means).square().sum(-1)
        # isotropic components: log density up to a constant that depends on t only
        density = torch.logsumexp(mixture.log_weights - squared / (2 * variance[:, None]), dim=1)
        return torch.autograd.grad(density.sum(), points)[0]

    real, fake = score(method.teacher.mixture), score(student_mixture)
    x0_real = (x_t + t.sin().square()[:, None] * real) / t.cos()[:, None]
    weight = t.sin().square() / t.cos() / (x - x0_real).abs().mean(1)
    assert torch.allclose(gradient, weight[:, None] * (fake - real), atol=1e-9)


def test_the_normaliser_is_per_sample():
    """One far-away sample must not change the gradient of its neighbours."""
    method = distiller()
    x, z, t = torch.randn(8, 2), torch.randn(8, 2), torch.full((8,), 0.8)
    alone, _ = method.gradient(x[:1], add_noise(x, z, t)[:1], t[:1], {})
    x[1] = 100
    together, _ = method.gradient(x, add_noise(x, z, t), t, {})
    assert torch.allclose(alone[0], together[0], atol=1e-6)


def test_the_loss_has_the_gradient_that_it_says():
    method = distiller()
    draws = batch()
    loss, _ = method.student_turn(draws)
    loss.backward()
    got = [p.grad.clone() for p in method.student.parameters()]
    method.zero_grad()
    again = batch()
    x = method.generate(again)
    t = method.noise_level(again)
    gradient, _ = method.gradient(x.detach(), add_noise(x.detach(), again.draws.normal(2), t), t, {})
    x.backward(gradient / x.numel())
    for one, two in zip(got, method.student.parameters(), strict=True):
        assert torch.allclose(one, two.grad, atol=1e-7)
    assert all(p.grad is None for p in method.fake_score.parameters())


def test_each_turn_trains_its_own_network_only():
    method = distiller(fake_score_updates=3)
    assert method.turns(0) == ("fake_score",) * 3 + ("student",)
    loss, _ = method("fake_score", batch(), 0)
    loss.backward()
    assert all(p.grad is None for p in method.student.parameters())
    assert all(p.grad is not None for p in method.fake_score.parameters())


def test_epsilon_loss_is_the_velocity_loss_times_cos_squared():
    """At one noise level the two fake-score losses differ by a factor that is known."""
    level = (0.499999, 0.5)
    velocity, _ = distiller(noise_range=level).fake_score_turn(batch())
    epsilon, _ = distiller(noise_range=level, fake_score_loss="epsilon").fake_score_turn(batch())
    angle = distiller().student.path.angle(torch.tensor([0.5 * 999]))
    assert torch.allclose(epsilon / velocity, torch.cos(angle).square().float(), rtol=1e-4)
