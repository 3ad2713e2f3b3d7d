"""sCM against closed forms: data N(0, s^2 I), with known probability-flow ODE and consistency function."""

import math

import pytest
import torch
from torch import nn

from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.methods.scm import SCM, SCMOptions
from teachers.core.denoiser import Denoiser
from teachers.core.time_embedding import refit_time_embedding
from teachers.core.trigflow import HALF_PI, Flow, VariancePreserving, add_noise, to_velocity, to_x0
from teachers.families.analytic import Analytic, ExactDenoiser, Mixture
from teachers.families.stable_diffusion import StableDiffusion
from teachers.pocket.parts import sd15_scheduler

STD = 0.6
CPU = torch.device("cpu")


class Exact(nn.Module):
    """The consistency function of N(0, s^2 I), f(x, t) = s x / sqrt(s^2 cos^2 t + sin^2 t), as a flow network."""

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
    return add_noise(x0, z, t), t


def target(scm: SCM, x_t, t, warmup=1.0):
    return scm.target(x_t, t, scm.teacher.velocity(x_t, t, {}), {}, warmup)


@pytest.mark.parametrize("tangent", ["jvp", "finite_difference"])
def test_exact_consistency_function_is_the_fixed_point(tangent):
    """If the student is the consistency function of the teacher's ODE, the tangent is zero everywhere."""
    x_t, t = points()
    g, _ = target(method(Exact(), tangent=tangent), x_t, t)
    assert g.abs().max() < (1e-9 if tangent == "jvp" else 1e-6)


class Quadratic(nn.Module):
    """A native flow network whose canonical velocity is F = a x^2 sin(2t), which has a simple derivative."""

    def forward(self, sample, timestep, return_dict=True):
        t = Flow().angle(timestep)
        scale = Flow().scale(t)[:, None]
        x = sample / scale
        velocity = 0.3 * x**2 * torch.sin(2 * t)[:, None]
        sin, cos = torch.sin(t)[:, None], torch.cos(t)[:, None]
        x0, z = cos * x - sin * velocity, sin * x + cos * velocity
        return (z - x0,)


def test_tangent_is_the_analytic_derivative():
    """g = cos t df/dt for F = 0.3 x^2 sin 2t along the exact drift; only its first term with a warmup of zero."""
    x, t = points()
    scm = method(Quadratic())
    sin, cos = torch.sin(t)[:, None], torch.cos(t)[:, None]
    variance = STD**2 * cos**2 + sin**2
    drift = x * sin * cos * (1 - STD**2) / variance  # d/dt log sqrt(variance) = sin cos (1 - s^2) / variance
    velocity = 0.3 * x**2 * torch.sin(2 * t)[:, None]
    slope = 0.6 * x * drift * torch.sin(2 * t)[:, None] + 0.6 * x**2 * torch.cos(2 * t)[:, None]
    derivative = -cos * (velocity - drift) - sin * (x + slope)  # of f = cos x - sin F
    g, frozen = target(scm, x, t)
    assert torch.allclose(frozen, velocity, atol=1e-10)
    assert torch.allclose(g, cos * derivative, atol=1e-8)
    first_term, _ = target(scm, x, t, warmup=0.0)
    assert torch.allclose(first_term, -(cos**2) * (velocity - drift), atol=1e-10)


def test_gradient_step_reduces_the_derivative():
    """A step on |F - stopgrad(F) - g|^2 moves F by +g, which reduces |df/dt|; a wrong sign would increase it."""
    x_t, t = points()
    scm = method(Quadratic())
    g, _ = target(scm, x_t, t, warmup=0.0)  # the term without dF/dt depends on F only

    class Moved(Quadratic):
        def forward(self, sample, timestep, return_dict=True):
            (flow,) = super().forward(sample, timestep)
            angle = Flow().angle(timestep)
            # z - x0 = (sin - cos) x + (cos + sin) F
            return (flow + 0.1 * g * (torch.cos(angle) + torch.sin(angle))[:, None],)

    after, _ = target(method(Moved()), x_t, t, warmup=0.0)
    assert after.norm() < g.norm()


def test_tangents_are_finite_at_both_ends_of_time():
    scm = method()
    t = torch.tensor([1e-6, 1e-3, HALF_PI - 1e-3, HALF_PI - 1e-6])
    g, _ = target(scm, torch.randn(4, 2), t)
    assert g.isfinite().all()


def test_nonfinite_samples_are_masked_and_counted():
    scm = method()
    exact = scm.tangent

    def broken(*args):
        value, slope = exact(*args)
        slope[3] = math.nan
        return value, slope

    scm.tangent = broken
    batch = Batch({}, BatchRandom(("t",), 0, 8, 8, CPU), torch.randn(8, 2))
    loss, logs = scm("student", batch, 1000)
    loss.backward()
    assert logs["masked_share"] == 1 / 8
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in scm.student.parameters())


def test_nonfinite_velocity_masks_only_its_sample():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, sample, timestep, return_dict=True):
            wrong = torch.zeros(len(sample), 1)
            wrong[3] = math.nan
            return (sample * self.weight + wrong,)

    scm = method()
    scm.student = Denoiser(Broken(), Flow(), "flow_prediction")
    loss, logs = scm("student", Batch({}, BatchRandom(("t",), 0, 8, 8, CPU), torch.randn(8, 2)), 1000)
    loss.backward()
    assert logs["masked_share"] == 1 / 8
    assert loss.isfinite() and scm.student.network.weight.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["jvp", "finite_difference"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_tangent_is_continuous_up_to_the_largest_angle(prediction, kind):
    """At the largest sampled angle the derivative is close to its value just before."""

    class Smooth(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, sample, timestep, return_dict=True):
            return (self.scale * torch.sin(sample + timestep[:, None] / 3),)

    path = VariancePreserving(sd15_scheduler().alphas_cumprod)
    scm = method(tangent=kind, proposal=(30.0, 0.1))  # every sampled angle is clamped at the end
    scm.student = Denoiser(Smooth(), path, prediction, time_scale=8.0)
    last = scm.noise_level(Batch({}, BatchRandom(("e",), 0, 4, 4, CPU)))
    assert last.max() < path.t_max
    x, drift = torch.randn(4, 2), torch.randn(4, 2)
    slopes = []
    for t in (last, last - 1e-3):
        along = torch.sin(t) * torch.cos(t)
        slopes.append(
            scm.tangent(lambda x, t: scm.student.velocity(x, t, {}), (x, t), (along[:, None] * drift, along))[1]
        )
    assert (slopes[0] - slopes[1]).norm() < 0.1 * slopes[1].norm()


def test_adaptive_weighting_starts_at_one_and_is_trained():
    plain, learned = method(), method(learned_weighting=True)
    learned.student.load_state_dict(plain.student.state_dict())
    one, _ = plain("student", Batch({}, BatchRandom(("w",), 0, 8, 8, CPU), torch.ones(8, 2)), 1000)
    two, _ = learned("student", Batch({}, BatchRandom(("w",), 0, 8, 8, CPU), torch.ones(8, 2)), 1000)
    assert torch.allclose(one / 2, two)  # e^0 / D with D = 2
    two.backward()
    assert learned.log_variance.linear.bias.grad.abs() > 0
    assert learned.log_variance in learned.networks()["student"]


def test_the_proposal_is_log_normal_in_tan_t():
    scm = method(proposal=(0.3, 0.5))
    t = scm.noise_level(Batch({}, BatchRandom(("p",), 0, 20000, 20000, CPU)))
    logs = torch.log(torch.tan(t))
    assert logs.mean().item() == pytest.approx(0.3, abs=0.01)
    assert logs.std().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
def test_rescaled_time_input_keeps_the_student_close_to_the_teacher(text_pipeline):
    torch.manual_seed(0)
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    student: Denoiser = teacher.student()
    refit_time_embedding(student, 8.0)
    assert student.timestep_input(torch.tensor([1.0])).item() == pytest.approx(8.0)
    x, t = torch.randn(8, 4, 8, 8), torch.linspace(0.1, 1.4, 8)
    cond = teacher.condition(["a coat"] * 8)
    with torch.no_grad():
        rescaled, native = student.velocity(x, t, cond), teacher.velocity(x, t, cond)
    assert (rescaled - native).norm() < 0.3 * native.norm()
    assert to_x0(x, rescaled, t).isfinite().all()


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_velocity_scale_is_the_derivative_of_the_velocity(prediction, sigma_data):
    path = Flow(sigma_data=sigma_data)
    if prediction != "flow_prediction":
        path = VariancePreserving(sd15_scheduler().alphas_cumprod, sigma_data)

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.output = nn.Parameter(torch.zeros(6, 1, dtype=torch.float64))

        def forward(self, sample, timestep, return_dict=True):
            return (self.output,)

    denoiser = Denoiser(Constant(), path, prediction, max_angle=1.2 if prediction == "epsilon" else None)
    t = torch.linspace(0.1, 1.45, 6, dtype=torch.float64)
    velocity = denoiser.velocity(torch.randn(6, 1, dtype=torch.float64), t, {})
    (slope,) = torch.autograd.grad(velocity.sum(), denoiser.network.output)
    assert torch.allclose(slope[:, 0].abs(), denoiser.velocity_scale(t), rtol=1e-6)


@pytest.mark.slow
def test_training_from_data_has_the_distillation_target_on_average():
    """sCT's dx/dt = cos t z - sin t x0 is an unbiased estimate of the teacher's velocity given x_t."""
    scm = method(Quadratic())
    count = 200_000
    generator = torch.Generator().manual_seed(0)
    x0 = STD * torch.randn(count, 2, dtype=torch.float64, generator=generator)
    z = torch.randn(count, 2, dtype=torch.float64, generator=generator)
    t = torch.full((count,), 0.8, dtype=torch.float64)
    x_t = add_noise(x0, z, t)
    own, exact = to_velocity(x0, z, t), scm.teacher.velocity(x_t, t, {})
    for weight in (torch.ones_like(x_t), x_t, x_t**2):  # the same projections onto functions of x_t
        assert (weight * (own - exact)).mean(0).abs().max() < 0.02
    g_own, _ = scm.target(x_t, t, own, {}, 1.0)
    g_exact, _ = scm.target(x_t, t, exact, {}, 1.0)
    assert (g_own - g_exact).mean(0).abs().max() < 0.02 and (g_own - g_exact).abs().max() > 0.1


def test_training_from_data_does_not_use_the_teacher():
    scm = method(drift="data")
    scm.teacher.denoiser = None
    loss, _ = scm("student", Batch({}, BatchRandom(("d",), 0, 8, 8, CPU), torch.randn(8, 2)), 1000)
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"second_times": (2.0,)}, "second_times must be below 1.5708"),
        ({"second_times": ()}, "second_times must have at least one angle"),
        ({"proposal": (0.3, 0.0)}, "proposal must have a standard deviation above 0"),
        ({"max_angle": 0.1}, "max_angle must be above 0.25, got 0.1"),
        ({"tangent_warmup": 0}, "tangent_warmup must be at least 1, got 0"),
    ],
)
def test_options_check_themselves(options, message):
    with pytest.raises(ValueError, match=message):
        SCMOptions(**options)


@pytest.mark.slow
def test_a_student_without_a_second_step_says_so(text_pipeline):
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    one = SCM(teacher, 1.0, SCMOptions(second_times=(1.1,), max_angle=0.5))
    assert len(one.sampling_schedules()[0]) == 1
    assert one.startup_messages()[-1].startswith("the student has one step only: it cannot be exported")
    assert len(SCM(teacher, 1.0, SCMOptions()).startup_messages()) == 1
