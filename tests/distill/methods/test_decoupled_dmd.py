"""Decoupled DMD: guidance as a term of its own in DMD's gradient."""

import pytest
import torch

from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from teachers.core.trigflow import add_noise
from teachers.families.analytic import Analytic, eight_gaussians
from teachers.families.stable_diffusion import StableDiffusion

CPU = torch.device("cpu")
LEVEL = (0.5, 0.500001)


class FixedNoise(BatchRandom):
    """Random numbers whose normal ones are the same at every call."""

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(len(self), *shape, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def teacher(text_pipeline):
    return StableDiffusion.load(str(text_pipeline), CPU)


def method(teacher, guidance=3.0, **options) -> DMD:
    torch.manual_seed(0)
    distiller = DMD(teacher, guidance, DMDOptions(**options))
    with torch.no_grad():  # so that distribution matching has a gradient
        for parameter in distiller.fake_score.parameters():
            parameter.mul_(1.02)
    return distiller


def batch(teacher, kind=BatchRandom, key=("decoupled",)) -> Batch:
    return Batch(teacher.condition(["a coat", "a bag"]), kind(key, 0, 2, 2, CPU))


@pytest.mark.slow
def test_both_terms_add_up_to_dmds_gradient_at_equal_noise(teacher):
    """Equation 6: scores with guidance are the sum of distribution matching and guidance."""
    ready = batch(teacher, FixedNoise)
    x = torch.randn(2, *teacher.shape)
    coupled = method(teacher, weighting="uniform")
    t = coupled.noise_level(ready, LEVEL)
    x_t = add_noise(x, ready.rng.normal(*teacher.shape), t)
    expected, _ = coupled.gradient(x, x_t, t, ready.cond)
    apart = method(teacher, weighting="uniform", guidance_noise="own", guidance_noise_range=LEVEL)
    matching, residual = apart.gradient(x, x_t, t, ready.cond)
    guidance = apart.guidance_gradient(ready, x, 0)
    assert torch.allclose(matching + guidance, expected, atol=1e-4)
    assert guidance.abs().max() > 1e-3 and matching.abs().max() > 1e-3
    unguided, same = method(teacher, guidance=1.0, weighting="uniform").gradient(x, x_t, t, ready.cond)
    assert torch.equal(matching, unguided) and torch.equal(residual, same)


@pytest.mark.slow
def test_each_term_is_weighted_at_its_own_noise_level(teacher):
    ready, x = batch(teacher, FixedNoise), torch.randn(2, *teacher.shape)
    options = {"guidance_noise": "own", "guidance_noise_range": LEVEL}
    plain = method(teacher, weighting="uniform", **options).guidance_gradient(ready, x, 0)
    weighted = method(teacher, weighting="dmd", **options)
    t = weighted.noise_level(ready, LEVEL)
    x_t = add_noise(x, ready.rng.normal(*teacher.shape), t)
    with torch.no_grad():
        guided = torch.cos(t)[:, None, None, None] * x_t
        guided = guided - torch.sin(t)[:, None, None, None] * teacher.velocity(x_t, t, ready.cond, 3.0)
    residual = (x - guided).abs().flatten(1).mean(1)
    gradient = weighted.guidance_gradient(ready, x, 0)
    assert torch.allclose(gradient * residual[:, None, None, None], plain, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_weight_of_guidance_scales_its_term(teacher):
    """1 + 0.5 (3 - 1) = 2: the same as the guidance scale 2."""
    ready, x, t = batch(teacher), torch.randn(2, *teacher.shape), torch.tensor([0.5, 1.1])
    half, _ = method(teacher, guidance_weight=0.5).gradient(x, x, t, ready.cond)
    expected, _ = method(teacher, guidance=2.0).gradient(x, x, t, ready.cond)
    assert torch.equal(half, expected)
    options = {"weighting": "uniform", "guidance_noise": "own", "guidance_noise_range": LEVEL}
    one, two = (
        method(teacher, guidance_weight=w, **options).guidance_gradient(batch(teacher), x, 0) for w in (0.5, 1.0)
    )
    assert torch.allclose(2 * one, two, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("noise_levels", ["timesteps", "karras"])
@pytest.mark.first_by_default
def test_guidance_stays_below_the_noise_of_the_students_step(teacher, noise_levels, monkeypatch):
    """Hybrid schedule: guidance at levels below the step's, distribution matching at all of them."""
    distiller = method(teacher, timesteps=(999, 749, 499, 249), guidance_noise="remaining", noise_levels=noise_levels)
    seen, velocity = [], teacher.velocity

    def record(x_t, t, cond, guidance):
        seen.append((guidance, t.max().item()))
        return velocity(x_t, t, cond, guidance)

    monkeypatch.setattr(teacher, "velocity", record)
    above, steps = [], set()
    for number in range(12):
        last = BatchRandom((number,), 0, 2, 2, CPU).pick(4)
        seen.clear()
        distiller.student_phase(batch(teacher, key=(number,)))
        (unguided, matching), (guided, own), (plain, same) = seen
        assert (unguided, guided, plain) == (1.0, 3.0, 1.0) and own == same
        assert own <= distiller.times[last] + 1e-6
        steps.add(last)
        above.append(matching > distiller.times[last])
    assert steps == {0, 1, 2, 3} and any(above)


@pytest.mark.parametrize("noise_levels", ["timesteps", "karras"])
@pytest.mark.slow
def test_noise_fraction_is_the_inverse_of_the_noise_levels(teacher, noise_levels):
    for other in (teacher, Analytic(eight_gaussians())):
        distiller = DMD(other, 1.0, DMDOptions(noise_levels=noise_levels, timesteps=(900, 400)))
        for fraction in (0.25, 0.5, 0.7):
            t = distiller.noise_level(batch(teacher), (fraction, fraction))
            assert distiller.noise_fraction(t[0].item()) == pytest.approx(fraction, abs=1e-4)
        assert 0.99 < distiller.noise_fraction(other.denoiser.path.t_max) <= 1 or noise_levels == "karras"


@pytest.mark.slow
def test_the_first_step_begins_with_pure_noise_wherever_it_starts(teacher):
    x = torch.randn(2, *teacher.shape)
    own, remaining = (
        method(teacher, timesteps=(399,), guidance_noise=kind).guidance_gradient(batch(teacher), x, 0)
        for kind in ("own", "remaining")
    )
    assert torch.equal(own, remaining)


@pytest.mark.slow
def test_guidance_that_cannot_be_separated_is_refused(teacher):
    with pytest.raises(ValueError, match=r"method\.guidance_noise must be shared, got own: the guidance of a Analytic"):
        DMD(Analytic(eight_gaussians()), 2.0, DMDOptions(guidance_noise="own"))
    with pytest.raises(ValueError, match=r"guidance_noise_range must begin below 0\.\d+, the noise level of the last"):
        method(teacher, timesteps=(999, 249), guidance_noise="remaining", guidance_noise_range=(0.5, 0.9))
    with pytest.raises(ValueError, match="guidance_weight must be above 0 with guidance_noise=own, got 0"):
        DMDOptions(guidance_noise="own", guidance_weight=0.0)


def test_noise_of_its_own_needs_guidance():
    options = DMDOptions(guidance_noise="remaining")
    with pytest.raises(ValueError, match=r"teacher\.guidance must be above 1 with method\.guidance_noise=remaining"):
        DMD.check_run(options, 1.0)
    DMD.check_run(options, 2.0)
    DMD.check_run(DMDOptions(), 1.0)
