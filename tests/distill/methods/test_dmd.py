"""DMD against closed forms."""

import copy
from functools import partial

import pytest
import torch

from distill.data.batch import Batch, Pairs
from distill.data.batch_random import BatchRandom
from distill.methods import dmd
from distill.methods.discriminator import approximate_r1, features, middle_block
from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from teachers.core.sampling import sample
from teachers.core.trigflow import VariancePreserving, add_noise, to_x0
from teachers.families.analytic import Analytic, ExactDenoiser, Mixture, MixtureNetwork, eight_gaussians
from teachers.families.stable_diffusion import StableDiffusion
from teachers.pocket.parts import sd15_scheduler

CPU = torch.device("cpu")


def distiller(**options) -> DMD:
    torch.manual_seed(0)
    return DMD(Analytic(eight_gaussians()), 1.0, DMDOptions(**options))


def batch(count=16, key=("test",)) -> Batch:
    return Batch({}, BatchRandom(key, 0, count, count, CPU))


def test_gradient_is_zero_when_the_fake_score_is_the_teacher():
    """The exact score of the same distribution in another parametrisation: epsilon on a variance-preserving path."""
    method = distiller()
    other = Analytic(eight_gaussians(), VariancePreserving(sd15_scheduler().alphas_cumprod), "epsilon")
    method.fake_score = other.denoiser
    x = torch.randn(16, 2, dtype=torch.float64)
    t = torch.linspace(0.1, 1.5, 16, dtype=torch.float64)
    gradient, _ = method.gradient(x, add_noise(x, torch.randn_like(x), t), t, {})
    assert gradient.abs().max() < 1e-9


def test_gradient_is_the_analytic_difference_of_scores():
    """For a known student distribution, w_t alpha_t (s_fake - s_real) with scores by Tweedie's formula, in float64."""
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


def test_gradient_is_normalised_per_sample():
    """An outlier does not change the gradients of the other samples."""
    method = distiller()
    x, z, t = torch.randn(8, 2), torch.randn(8, 2), torch.full((8,), 0.8)
    alone, _ = method.gradient(x[:1], add_noise(x, z, t)[:1], t[:1], {})
    x[1] = 100
    together, _ = method.gradient(x, add_noise(x, z, t), t, {})
    assert torch.allclose(alone[0], together[0], atol=1e-6)


def test_student_loss_has_the_distribution_matching_gradient():
    method = distiller()
    rng = batch()
    loss, _ = method.student_phase(rng)
    loss.backward()
    actual = [p.grad.clone() for p in method.student.parameters()]
    method.zero_grad()
    again = batch()
    x = method.generate(again)
    t = method.noise_level(again)
    gradient, _ = method.gradient(x.detach(), add_noise(x.detach(), again.rng.normal(2), t), t, {})
    x.backward(gradient / x.numel())
    for one, two in zip(actual, method.student.parameters(), strict=True):
        assert torch.allclose(one, two.grad, atol=1e-7)
    assert all(p.grad is None for p in method.fake_score.parameters())


def test_each_phase_trains_only_its_own_network():
    method = distiller(fake_score_updates=3)
    assert method.phases(0) == ("fake_score",) * 3 + ("student",)
    loss, _ = method("fake_score", batch(), 0)
    loss.backward()
    assert all(p.grad is None for p in method.student.parameters())
    assert all(p.grad is not None for p in method.fake_score.parameters())


def test_weightings_have_their_documented_factors():
    x, t = torch.randn(16, 2), torch.linspace(0.2, 1.4, 16)
    x_t = add_noise(x, torch.randn(16, 2), t)
    gradients = {}
    for weighting in ("dmd", "uniform", "karras"):
        method = distiller(weighting=weighting)
        gradients[weighting], residual = method.gradient(x, x_t, t, {})
    difference = method.fake_score.denoise(x_t, t, {}) - method.teacher.denoiser.denoise(x_t, t, {})
    assert torch.allclose(gradients["uniform"], difference, atol=1e-5)
    assert torch.allclose(gradients["dmd"] * residual[:, None], difference, atol=1e-5)
    sigma = torch.tan(t)[:, None]  # EDM's weight at unit variance
    assert torch.allclose(gradients["karras"], (1 / sigma**2 + 1) * difference, rtol=1e-4, atol=1e-5)


def test_fake_score_losses_are_errors_of_velocity_epsilon_and_sample():
    """At one noise level: |error|^2 of v, z and x0; the error of v is EDM's weight times the error of x0."""
    level = (0.499999, 0.5)
    losses = {
        kind: distiller(noise_range=level, fake_score_loss=kind).fake_score_phase(batch())[0]
        for kind in ("velocity", "epsilon", "sample")
    }
    method, rng = distiller(noise_range=level), batch()
    x, t = method.generate(rng).detach(), method.noise_level(rng)
    z = rng.rng.normal(2)
    x_t = add_noise(x, z, t)
    velocity = method.fake_score.velocity(x_t, t, {})
    noise = torch.sin(t)[:, None] * x_t + torch.cos(t)[:, None] * velocity
    assert torch.allclose(losses["epsilon"], (noise - z).square().mean(), rtol=1e-4)
    assert torch.allclose(losses["sample"], (to_x0(x_t, velocity, t) - x).square().mean(), rtol=1e-4)
    sigma = torch.tan(t[0])
    assert torch.allclose(losses["velocity"], (1 / sigma**2 + 1) * losses["sample"], rtol=1e-3)


def test_karras_noise_levels_are_uniform_on_karras_grid():
    method = distiller(noise_levels="karras", noise_range=(0.0, 1.0))
    sigma = torch.tan(method.noise_level(batch(20000)).double())
    fraction = (sigma ** (1 / 7) - 0.002 ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7))
    fraction = fraction.sort().values
    assert (fraction - torch.linspace(0, 1, 20000).double()).abs().max() < 1e-3


@pytest.mark.slow
def test_multi_step_students_train_on_their_own_outputs():
    """The input of step k is the student's output from pure noise; only the last evaluation has a gradient."""
    method = distiller(timesteps=(999, 749, 499, 249))
    assert method.sampling_schedules() == [method.times] and len(method.times) == 4
    depths = set()
    for key in range(40):
        inputs = []
        hook = method.student.network.register_forward_pre_hook(lambda _, args, seen=inputs: seen.append(args[0]))
        x = method.generate(batch(8, ("deep", key)))
        hook.remove()
        depths.add(len(inputs))
        rng = batch(8, ("deep", key)).rng
        assert rng.pick(4) == len(inputs) - 1
        x_t = rng.normal(2) / method.student.path.scale(torch.tensor([method.times[0]]))
        with torch.no_grad():
            for step, angle in enumerate(method.times[: len(inputs)]):
                t = torch.full((8,), angle)
                if step:
                    x_t = add_noise(x0, rng.normal(2), t)  # noqa: F821
                x0 = method.student.denoise(x_t.float(), t, {})
        assert torch.allclose(x, x0, atol=1e-5)
        (slope,) = torch.autograd.grad(x.sum(), method.student.network.outputs.bias)
        _, sigma = method.student.path.native(torch.tensor([method.times[len(inputs) - 1]]))
        assert torch.allclose(slope, torch.full((2,), -8 * sigma.item()), rtol=1e-4)  # x0 = native - sigma flow
    assert depths == {1, 2, 3, 4}


@pytest.mark.parametrize("timesteps", [(1001,), (300, 500), (500, 0)])
def test_invalid_timesteps_are_rejected(timesteps):
    with pytest.raises(ValueError, match=r"timesteps(\[1\])? must"):
        distiller(timesteps=timesteps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fake_score_updates": 0}, "fake_score_updates must be at least 1, got 0"),
        ({"noise_range": (0.5, 0.5)}, "noise_range must increase"),
        ({"gan_noise_range": (0.0, 1.5)}, "gan_noise_range must be at most 1"),
        ({"regression_weight": 0.25, "regression_pairs": 0}, "regression_pairs must be at least 1"),
        ({"r1_weight": 1.0}, "r1_weight must be 0 without a discriminator"),
        ({"guidance_weight": -1.0}, "guidance_weight must be at least 0"),
        ({"guidance_noise_range": (0.5, 0.1)}, "guidance_noise_range must increase"),
        ({"weighting": "edm"}, "weighting must be one of dmd, karras, uniform, got 'edm'"),
    ],
)
def test_options_check_themselves(options, message):
    with pytest.raises(ValueError, match=message):
        DMDOptions(**options)


def with_images(count=16, key=("gan",)) -> Batch:
    images = eight_gaussians().sample(count, torch.Generator().manual_seed(0)).float()
    return Batch({}, BatchRandom(key, 0, count, count, CPU), images)


@pytest.mark.parametrize("features", ["fake_score", "teacher"])
def test_gan_trains_student_and_discriminator_in_their_own_phases(features):
    method = distiller(gan_weight=0.5, r1_weight=1.0)
    if features == "teacher":  # the exact teacher has no network with features, so one is put in its place
        method.teacher.denoiser = copy.deepcopy(method.fake_score).requires_grad_(False)
        method.options.gan_features = "teacher"
    loss, logs = method("student", with_images(), 0)
    loss.backward()
    assert logs["adversarial"] > 0 and all(p.grad is not None for p in method.student.parameters())
    assert all(p.grad is None for m in (method.fake_score, method.discriminator) for p in m.parameters())
    assert all(p.requires_grad for p in method.fake_score.parameters())  # frozen for this loss only
    method.zero_grad()
    loss, logs = method("fake_score", with_images(), 0)
    loss.backward()
    assert all(p.grad is not None for p in method.discriminator.parameters())
    assert all(p.grad is None for p in method.student.parameters())
    assert logs["r1"] > 0 and method.needs_latents(method.options) and not DMD.needs_latents(DMDOptions())


@pytest.mark.exhaustive
def test_discriminator_learns_the_log_density_ratio():
    """The optimal logits are log p_real - log p_fake; for two Gaussians they are linear in x with a known slope."""
    torch.manual_seed(0)
    method = distiller(gan_weight=1.0, gan_noise_range=(0.3, 0.300001), discriminator_weight=1.0)
    head = method.discriminator
    optimizer = torch.optim.Adam([*method.fake_score.parameters(), *head.parameters()], 2e-3)
    for step in range(250):
        rng = BatchRandom(("ratio", step), 0, 256, 256, CPU)
        real, fake = rng.normal(2) + torch.tensor([0.5, 0.0]), rng.normal(2) - torch.tensor([0.5, 0.0])
        loss, _ = method.discriminator_loss(Batch({}, rng, real), fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    t = method.noise_level(batch(200), (0.3, 0.300001))
    x = torch.stack([torch.linspace(-1, 1, 200), torch.zeros(200)], dim=1)
    with torch.no_grad():
        logits = head(method.fake_score, x, t, {})
    # x_t ~ N(cos t mu, I) with mu = +-0.5, so the log ratio is 2 cos t mu x.
    assert (logits - torch.cos(t) * x[:, 0]).abs().mean() < 0.15


@pytest.mark.slow
def test_approximate_r1_is_the_squared_gradient():
    """Compared with the gradient penalty by autograd on the same discriminator."""
    method = distiller(gan_weight=1.0)
    x = torch.randn(4, 2, requires_grad=True)
    t = torch.full((4,), 0.9)
    logits = method.discriminator(method.fake_score, x, t, {})
    (slope,) = torch.autograd.grad(logits.sum(), x)
    exact = slope.square().sum(1).mean()
    rows = torch.arange(4).repeat_interleave(20000)
    noisy = x.detach()[rows], t[rows], {}
    with torch.no_grad():
        repeated = logits.detach()[rows]
        approximation = approximate_r1(method.discriminator, method.fake_score, repeated, noisy, torch.randn(80000, 2))
    assert torch.allclose(approximation, exact, rtol=0.03)


@pytest.mark.slow
def test_features_of_a_unet_are_tokens(text_pipeline):
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    cond = teacher.condition(["a coat", "a bag"])
    tokens = features(teacher.denoiser, torch.randn(2, *teacher.shape), torch.tensor([0.5, 1.0]), cond)
    width = teacher.denoiser.network.config.block_out_channels[-1]
    assert tokens.shape[0] == 2 and tokens.shape[2] == width
    with pytest.raises(ValueError, match="gan_weight"):
        middle_block(torch.nn.Linear(2, 2))


@pytest.mark.slow
def test_regression_by_lpips_and_by_latents(text_pipeline, monkeypatch):
    """The distance between the student's first step and the endpoint; both are decoded for LPIPS."""
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    cond = teacher.condition(["a coat"] * 2)
    noise = torch.randn(2, *teacher.shape)
    seen = []

    def distance(one, two):
        seen.append((one, two))
        return (one - two).abs().flatten(1).mean(1)

    monkeypatch.setattr(dmd, "Lpips", lambda device: distance)
    for kind in ("lpips", "latent"):
        options = DMDOptions(timesteps=(700,), regression_weight=0.25, regression_distance=kind)
        method = DMD(teacher, 2.0, options)
        own = sample(method.student, noise, method.times, cond, lambda: noise).detach()
        for endpoint, zero in ((own, True), (own + 0.1, False)):
            ready = Batch(cond, BatchRandom(("r",), 0, 2, 2, CPU), None, partial(Pairs, noise, endpoint, cond))
            loss, logs = method("student", ready, 0)
            assert (logs["regression"] < 1e-6) == zero
            loss.backward()
    assert seen[0][0].shape == (2, 3, *teacher.image_size) and len(seen) == 2
    assert DMD.pairs(options)[0] == options.regression_pairs and DMD.pairs(DMDOptions())[0] == 0
