"""sCM against closed forms: data N(0, s^2 I), whose probability-flow ODE and consistency function are known."""

import math

import pytest
import torch
from torch import nn

from distill.distiller import Batch
from distill.draws import Draws
from distill.scm import SCM, SCMOptions
from teachers.analytic import Analytic, ExactDenoiser, Mixture
from teachers.denoiser import Denoiser
from teachers.few_step import soften_clock
from teachers.pocket.make import sd15_scheduler
from teachers.trigflow import HALF_PI, Flow, VariancePreserving, add_noise, to_x0

STD = 0.6
CPU = torch.device("cpu")


class Exact(nn.Module):
    """The consistency function of N(0, s^2 I), f(x, t) = s x / sqrt(s^2 cos^2 t + sin^2 t), as native flow network."""

    def forward(self, sample, timestep, return_dict=True):
        tan = torch.tan(Flow().angle(timestep))
        t = torch.atan(tan)
        scale = Flow().scale(t)[:, None]
        x_t = sample / scale
        sin, cos = torch.sin(t)[:, None], torch.cos(t)[:, None]
        f = STD * x_t / torch.sqrt(STD**2 * cos**2 + sin**2)
        z = (x_t - cos * f) / sin
        return (z - f,)


def method(network: nn.Module | None = None, **options) -> SCM:
    torch.manual_seed(0)
    teacher = Analytic(Mixture(torch.zeros(1, 2), STD))
    out = SCM(teacher, 1.0, SCMOptions(adaptation_steps=0, **options))
    if network is not None:
        out.student = ExactDenoiser(network, Flow(), "flow_prediction")
    return out


def points(count=64):
    t = torch.linspace(0.02, 1.55, count, dtype=torch.float64)
    x0 = STD * torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return Batch({}, Draws(("t",), 0, count, count, CPU), x0), add_noise(x0, z, t), t


@pytest.mark.parametrize("tangent", ["jvp", "finite_difference"])
def test_the_exact_consistency_function_is_the_fixed_point(tangent):
    """Student = the true consistency function of the teacher's ODE -> the tangent target is zero everywhere."""
    batch, x_t, t = points()
    g, _ = method(Exact(), tangent=tangent).target(batch, x_t, t, warm=1.0)
    assert g.abs().max() < (1e-9 if tangent == "jvp" else 1e-6)


class Quadratic(nn.Module):
    """A native flow network whose canonical velocity is F = a x^2 sin(2t): simple enough to differentiate by hand."""

    def forward(self, sample, timestep, return_dict=True):
        t = Flow().angle(timestep)
        scale = Flow().scale(t)[:, None]
        x = sample / scale
        velocity = 0.3 * x**2 * torch.sin(2 * t)[:, None]
        sin, cos = torch.sin(t)[:, None], torch.cos(t)[:, None]
        x0, z = cos * x - sin * velocity, sin * x + cos * velocity
        return (z - x0,)


def test_the_tangent_is_the_analytic_derivative():
    """g = cos t df/dt for F = 0.3 x^2 sin 2t along the exact drift, and only its stable half at warm-up zero."""
    batch, x, t = points()
    scm = method(Quadratic())
    sin, cos = torch.sin(t)[:, None], torch.cos(t)[:, None]
    spread = STD**2 * cos**2 + sin**2
    drift = x * sin * cos * (1 - STD**2) / spread  # d/dt log sqrt(spread) = sin cos (1 - s^2) / spread
    velocity = 0.3 * x**2 * torch.sin(2 * t)[:, None]
    slope = 0.6 * x * drift * torch.sin(2 * t)[:, None] + 0.6 * x**2 * torch.cos(2 * t)[:, None]
    derivative = -cos * (velocity - drift) - sin * (x + slope)  # of f = cos x - sin F
    g, frozen = scm.target(batch, x, t, warm=1.0)
    assert torch.allclose(frozen, velocity, atol=1e-10)
    assert torch.allclose(g, cos * derivative, atol=1e-8)
    half, _ = scm.target(batch, x, t, warm=0.0)
    assert torch.allclose(half, -(cos**2) * (velocity - drift), atol=1e-10)


def test_a_step_along_the_loss_reduces_the_derivative():
    """Descending |F - stop(F) - g|^2 moves F by +g, which must shrink |df/dt| (a wrong sign would grow it)."""
    batch, x_t, t = points()
    scm = method(Quadratic())
    g, _ = scm.target(batch, x_t, t, warm=0.0)  # the half without dF/dt reacts to F alone

    class Moved(Quadratic):
        def forward(self, sample, timestep, return_dict=True):
            (flow,) = super().forward(sample, timestep)
            angle = Flow().angle(timestep)
            # z - x0 = (sin - cos) x + (cos + sin) F
            return (flow + 0.1 * g * (torch.cos(angle) + torch.sin(angle))[:, None],)

    after, _ = method(Moved()).target(batch, x_t, t, warm=0.0)
    assert after.norm() < g.norm()


def test_tangents_are_finite_at_both_ends_of_time():
    scm = method()
    t = torch.tensor([1e-6, 1e-3, HALF_PI - 1e-3, HALF_PI - 1e-6])
    batch = Batch({}, Draws(("t",), 0, 4, 4, CPU), torch.randn(4, 2))
    g, _ = scm.target(batch, torch.randn(4, 2), t, warm=1.0)
    assert g.isfinite().all()


def test_samples_that_are_not_finite_are_masked_and_counted():
    scm = method()
    exact = scm.tangent

    def broken(*args):
        value, slope = exact(*args)
        slope[3] = math.nan
        return value, slope

    scm.tangent = broken
    batch = Batch({}, Draws(("t",), 0, 8, 8, CPU), torch.randn(8, 2))
    loss, logs = scm("student", batch, 1000)
    loss.backward()
    assert logs["masked_samples"] == 1
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in scm.student.parameters())


def test_learned_weighting_starts_at_one_and_is_trained():
    plain, learned = method(), method(learned_weighting=True)
    learned.student.load_state_dict(plain.student.state_dict())
    one, _ = plain("student", Batch({}, Draws(("w",), 0, 8, 8, CPU), torch.ones(8, 2)), 1000)
    two, _ = learned("student", Batch({}, Draws(("w",), 0, 8, 8, CPU), torch.ones(8, 2)), 1000)
    assert torch.allclose(one / 2, two)  # e^0 / D with D = 2
    two.backward()
    assert learned.log_variance.linear.bias.grad.abs() > 0
    assert learned.log_variance in learned.networks()["student"]


def test_the_proposal_is_log_normal_in_tan_t():
    scm = method(proposal=(0.3, 0.5))
    t = scm.noise_level(Batch({}, Draws(("p",), 0, 20000, 20000, CPU)))
    logs = torch.log(torch.tan(t))
    assert logs.mean().item() == pytest.approx(0.3, abs=0.01)
    assert logs.std().item() == pytest.approx(0.5, abs=0.01)


def test_a_softened_clock_is_close_to_the_teacher_and_gentle(text_pipeline):
    from teachers.stable_diffusion import StableDiffusion

    torch.manual_seed(0)
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    student: Denoiser = teacher.student()
    soften_clock(student, 8.0)
    assert student.clock(torch.tensor([1.0])).item() == pytest.approx(8.0)
    x, t = torch.randn(8, 4, 8, 8), torch.linspace(0.1, 1.4, 8)
    cond = teacher.condition(["a coat"] * 8)
    with torch.no_grad():
        soft, hard = student.velocity(x, t, cond), teacher.velocity(x, t, cond)
    assert (soft - hard).norm() < 0.3 * hard.norm()
    assert to_x0(x, soft, t).isfinite().all()


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_gain_is_the_derivative_of_the_velocity(prediction, sigma_data):
    path = Flow(sigma_data=sigma_data)
    if prediction != "flow_prediction":
        path = VariancePreserving(sd15_scheduler().alphas_cumprod, sigma_data)

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.output = nn.Parameter(torch.zeros(6, 1, dtype=torch.float64))

        def forward(self, sample, timestep, return_dict=True):
            return (self.output,)

    denoiser = Denoiser(Constant(), path, prediction, ceiling=1.2 if prediction == "epsilon" else None)
    t = torch.linspace(0.1, 1.45, 6, dtype=torch.float64)
    velocity = denoiser.velocity(torch.randn(6, 1, dtype=torch.float64), t, {})
    (slope,) = torch.autograd.grad(velocity.sum(), denoiser.network.output)
    assert torch.allclose(slope[:, 0].abs(), denoiser.gain(t), rtol=1e-6)
