"""SiD against closed forms: two Gaussians, whose Fisher divergence is known."""

import math

import pytest
import torch

from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.methods.discriminator import frozen
from distill.methods.sid import SID, SIDOptions
from teachers.core.trigflow import VariancePreserving, add_noise, to_x0
from teachers.families.analytic import Analytic, ExactDenoiser, Mixture, MixtureNetwork, eight_gaussians
from teachers.families.stable_diffusion import StableDiffusion
from teachers.pocket.parts import sd15_scheduler

CPU = torch.device("cpu")
MEAN = torch.tensor([0.6, -0.3], dtype=torch.float64)


def distiller(teacher=None, **options) -> SID:
    torch.manual_seed(0)
    return SID(teacher or Analytic(eight_gaussians()), 1.0, SIDOptions(**options))


def batch(count=16, key=("sid",), latents=None) -> Batch:
    return Batch({}, BatchRandom(key, 0, count, count, CPU), latents)


def between_gaussians(std: float, **options) -> SID:
    """The teacher's data is N(MEAN, 0.8^2), the student's samples are N(0, std^2); the fake score is exact."""
    method = distiller(Analytic(Mixture(MEAN[None], 0.8)), **options)
    path = method.teacher.denoiser.path
    network = MixtureNetwork(Mixture(torch.zeros(1, 2), std), path, "flow_prediction")
    method.fake_score = ExactDenoiser(network, path, "flow_prediction")
    return method


def draws(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return tuple(torch.randn(count, 2, dtype=torch.float64, generator=rng) for _ in range(2))


def test_loss_and_gradient_are_zero_when_the_fake_score_is_the_teacher():
    """The exact score of the same distribution in another parametrisation: epsilon on a variance-preserving path."""
    method = distiller(alpha=1.2)
    other = Analytic(eight_gaussians(), VariancePreserving(sd15_scheduler().alphas_cumprod), "epsilon")
    method.fake_score = other.denoiser
    t = torch.linspace(0.1, 1.5, 16, dtype=torch.float64)
    losses, gradient, _ = method.gradient(*draws(16), t, {})
    assert losses.abs().max() < 1e-9 and gradient.abs().max() < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.2, 0.0, 0.5, 1.0])
@pytest.mark.first_by_default
def test_expected_loss_is_a_multiple_of_the_fisher_divergence(alpha):
    """Both estimates are the divergence for an exact fake score, so L2 - alpha L1 is (1 - alpha) times it."""
    method, angle, std, count = between_gaussians(0.5, alpha=alpha), 0.9, 0.5, 400_000
    z, noise = draws(count)
    losses, _, residual = method.gradient(std * z, noise, torch.full((count,), angle, dtype=torch.float64), {})
    # s_real - s_student = A x_t + b is linear; x_t ~ N(0, variance) in each of two dimensions
    variance, target = ((math.cos(angle) * s) ** 2 + math.sin(angle) ** 2 for s in (std, 0.8))
    slope, offset = 1 / variance - 1 / target, math.cos(angle) * MEAN / target
    fisher = 2 * slope**2 * variance + offset.square().sum()
    weight = math.sin(angle) ** 4 / math.cos(angle) ** 2
    found = (losses * residual).mean() * 2  # without the normalisation, a sum over elements
    assert found == pytest.approx((1 - alpha) * weight * fisher.item(), abs=2e-3)


def test_gradient_moves_the_mean_as_the_fisher_divergence_does():
    """For equal variances: half of the gradient of a^2 |mean difference|^2, for any alpha and sample."""
    angle, count = 0.9, 64
    t, (z, noise) = torch.full((count,), angle, dtype=torch.float64), draws(count)
    shrink = math.cos(angle) ** 2 * 0.8**2 / ((math.cos(angle) * 0.8) ** 2 + math.sin(angle) ** 2)
    for alpha in (0.0, 1.0, 1.2):
        _, gradient, residual = between_gaussians(0.8, alpha=alpha).gradient(0.8 * z, noise, t, {})
        expected = -((1 - shrink) ** 2) * MEAN
        assert torch.allclose(gradient * residual[:, None], expected.expand(count, 2), atol=1e-12)


def test_gradient_is_that_of_the_loss():
    """Compared with one graph through both scores and the student, in float32."""
    method = distiller(alpha=1.2)
    loss, logs = method.student_phase(batch())
    loss.backward()
    actual = [p.grad.clone() for p in method.student.parameters()]
    assert all(p.grad is None and p.requires_grad for p in method.fake_score.parameters())
    method.zero_grad()
    again = batch()
    x, t = method.generate(again), method.noise_level(again)
    x_t = add_noise(x, again.rng.normal(2), t)
    with frozen(method.fake_score):
        real, fake = (to_x0(x_t, d.velocity(x_t, t, {}), t) for d in (method.teacher.denoiser, method.fake_score))
    weight = (x - real).detach().abs().mean(1, keepdim=True)
    expected = ((real - fake) * ((real - x) - 1.2 * (real - fake)) / weight).mean()
    assert torch.allclose(loss, expected, rtol=1e-5) and torch.allclose(logs["loss"], expected, rtol=1e-5)
    expected.backward()
    for one, two in zip(actual, method.student.parameters(), strict=True):
        assert torch.allclose(one, two.grad, rtol=1e-4, atol=1e-6)


def test_loss_is_normalised_per_sample():
    """An outlier does not change the gradients of the other samples."""
    method, (x, noise), t = distiller(), draws(8), torch.full((8,), 0.8, dtype=torch.float64)
    _, alone, _ = method.gradient(x[:1].float(), noise[:1].float(), t[:1].float(), {})
    x[1] = 100
    _, together, _ = method.gradient(x.float(), noise.float(), t.float(), {})
    assert torch.allclose(alone[0], together[0], atol=1e-6)


def test_adversarial_term_trains_in_both_phases():
    """SiDA: the discriminator reads the fake score's features; each phase trains its own networks only."""
    latents = eight_gaussians().sample(16, torch.Generator().manual_seed(0)).float()
    method = distiller(gan_weight=0.5)
    assert method.needs_latents(method.options) and not SID.needs_latents(SIDOptions())
    loss, logs = method("student", batch(latents=latents), 0)
    loss.backward()
    assert logs["adversarial"] > 0 and all(p.grad is not None for p in method.student.parameters())
    assert all(p.grad is None for m in (method.fake_score, method.discriminator) for p in m.parameters())
    method.zero_grad()
    method("fake_score", batch(latents=latents), 0)[0].backward()
    assert all(p.grad is not None for m in (method.fake_score, method.discriminator) for p in m.parameters())
    assert all(p.grad is None for p in method.student.parameters())


@pytest.fixture
def guided(text_pipeline):
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    cond, rng = teacher.condition(["a coat", "a bag"]), BatchRandom(("guided",), 0, 2, 2, CPU)
    return teacher, Batch(cond, rng)


@pytest.mark.slow
def test_guided_fake_score_is_trained_at_its_guidance_scale(guided):
    """SiD-LSG: the velocity in the fake score's loss is the guided one, which the student's loss reads too."""
    teacher, ready = guided
    torch.manual_seed(0)
    method = SID(teacher, 2.0, SIDOptions(fake_score_guidance=1.5))
    x, t = torch.randn(2, *teacher.shape), torch.tensor([0.4, 1.1])
    with torch.no_grad():
        found = method.trained_velocity(ready, x, t)
        expected = teacher.velocity(x, t, ready.cond, 1.5)  # the fake score is a copy of the teacher
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_gradient_of_an_offloaded_teacher_is_the_same(guided):
    """Backward runs while the teacher is on the device."""
    teacher, ready = guided
    torch.manual_seed(0)
    method = SID(teacher, 2.0, SIDOptions())
    arguments = torch.randn(2, *teacher.shape), torch.randn(2, *teacher.shape), torch.tensor([0.4, 1.1]), ready.cond
    expected = method.gradient(*arguments)
    teacher.offload(CPU)
    assert all(torch.equal(a, b) for a, b in zip(method.gradient(*arguments), expected, strict=True))
