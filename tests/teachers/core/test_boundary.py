"""The boundary condition f(x, 0) = x of consistency students, for every prediction type."""

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn

from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.methods.dmd_options import DMDOptions
from distill.methods.rcm import RCM, RCMOptions
from distill.methods.scm import SCM, SCMOptions
from teachers.core.denoiser import Denoiser
from teachers.core.few_step import consistency_scheduler
from teachers.core.sampling import sample
from teachers.core.trigflow import Flow, VariancePreserving
from teachers.families.analytic import Analytic, Mixture
from teachers.families.unconditional import Unconditional
from teachers.pocket.parts import sd15_scheduler

CPU = torch.device("cpu")
TYPES = ["epsilon", "sample", "v_prediction", "flow_prediction"]
DIM = 16


class Constant(nn.Module):
    """A network with one output for all inputs; it shows its output's gradient."""

    def __init__(self, value: float = 0.3) -> None:
        super().__init__()
        self.output = nn.Parameter(torch.full((DIM,), value))

    def forward(self, sample, timestep, return_dict=True):
        return (self.output.expand(len(sample), -1),)


def path_of(prediction, sigma_data):
    if prediction == "flow_prediction":
        return Flow(sigma_data=sigma_data)
    return VariancePreserving(sd15_scheduler().alphas_cumprod, sigma_data)


def method(prediction, sigma_data=1.0, network=None, rcm=False, **options):
    """sCM or rCM around an exact mixture teacher, with `network` as the student's."""
    torch.manual_seed(0)
    path = path_of(prediction, sigma_data)
    mixture = Mixture(torch.randn(4, DIM), 0.3)
    teacher = Analytic(mixture, path, prediction)
    student = Denoiser(network or Constant(), path, prediction)
    scm = SCMOptions(**options)
    distiller = (
        RCM(teacher, 1.0, RCMOptions(scm=scm, dmd=DMDOptions()), student) if rcm else SCM(teacher, 1.0, scm, student)
    )
    latents = mixture.sample(512, torch.Generator().manual_seed(0)).float()
    return distiller, Batch({}, BatchRandom(("b",), 0, 512, 512, CPU), latents)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", TYPES)
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("adaptation_steps", [0, 5])
def test_a_constant_network_has_a_large_consistency_loss(prediction, sigma_data, adaptation_steps):
    """Without the boundary condition, the loss of a constant sample network is 1e-13."""
    scm, batch = method(prediction, sigma_data, adaptation_steps=adaptation_steps)
    loss, logs = scm("student", batch, 1000)
    assert loss > 0.1
    assert logs["tangent_norm"] > 1
    (gradient,) = torch.autograd.grad(loss, scm.student.network.output)
    assert gradient.norm() > 1e-3


def test_rcm_students_have_the_boundary_and_their_fake_score_has_not():
    rcm, _ = method("sample", rcm=True)
    assert rcm.student.boundary_angle == 0.4
    assert rcm.fake_score.boundary_angle == 0 and rcm.teacher.denoiser.boundary_angle == 0


@pytest.mark.parametrize("prediction", TYPES)
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("adaptation_steps", [0, 5])
@pytest.mark.parametrize("t", [0.0, 1e-4, 0.02])
@pytest.mark.first_is_quick
def test_students_are_the_identity_at_small_angles(prediction, sigma_data, adaptation_steps, t):
    """The error is at most the smallest noise level of the schedule, times the network's output."""
    scm, _ = method(prediction, sigma_data, adaptation_steps=adaptation_steps)
    x = torch.randn(64, DIM)
    f = scm.student.denoise(x, torch.full((64,), t), {})
    assert (f - x).norm() / x.norm() < 0.12


def test_a_sample_student_computes_what_the_teacher_computes_from_the_boundary_on():
    """Exactly, so its stock pipeline needs no change; below it, f and F stay finite and have no jump."""
    teacher = Analytic(Mixture(torch.randn(4, DIM), 0.3), path_of("sample", 0.5), "sample")
    student = Denoiser(teacher.denoiser.network, teacher.denoiser.path, "sample")
    plain, t = student.denoise, torch.linspace(0.4, 1.5, 50)
    x = torch.randn(50, DIM)
    expected = plain(x, t, {})
    student.boundary_angle = 0.4
    assert torch.equal(student.denoise(x, t, {}), expected)
    knee = torch.full((50,), 0.4)
    for function in (student.denoise, student.velocity):
        assert torch.allclose(function(x, knee - 1e-5, {}), function(x, knee, {}), atol=1e-3)
    assert student.velocity(x, torch.zeros(50), {}).isfinite().all()


@pytest.mark.parametrize("t", [0.05, 0.3999, 0.4, 0.4001, 1.0])
def test_the_divisor_and_its_derivative_are_continuous(t):
    student = Denoiser(Constant(), path_of("sample", 1.0), "sample")
    student.boundary_angle = 0.4
    angle = torch.tensor([t], dtype=torch.float64)
    slope = torch.func.jvp(student.output_divisor, (angle,), (torch.ones_like(angle),))[1]
    difference = (student.output_divisor(angle + 1e-6) - student.output_divisor(angle - 1e-6)) / 2e-6
    assert torch.allclose(slope, difference, atol=1e-4)
    assert torch.allclose(1 / student.velocity_scale(angle), student.output_divisor(angle))


def test_second_times_below_the_boundary_are_not_sampled():
    scm, _ = method("sample", second_times=(0.2, 0.4, 0.7))
    assert [times[1] for times in scm.sampling_schedules()] == [0.4, 0.7]
    with pytest.raises(ValueError, match=r"at least its boundary_angle 0\.4"):
        consistency_scheduler(scm.student, [scm.student.path.t_max, 0.2])
    scm, _ = method("v_prediction", second_times=(0.2, 0.4))
    assert [times[1] for times in scm.sampling_schedules()] == [0.2, 0.4]


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.first_is_quick
def test_exports_of_sample_students_equal_the_student(sigma_data, steps):
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
    )
    teacher = Unconditional(network, DDPMScheduler(prediction_type="sample", clip_sample=False), sigma_data)
    student = SCM(teacher, 1.0, SCMOptions(second_times=(0.4,))).student
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    times = [student.path.t_max, 0.4][:steps]
    pipe = teacher.pipeline(student, times)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(4, generator=torch.Generator().manual_seed(3), output_type="np", **teacher.calls(steps, times)).images
    rng = torch.Generator().manual_seed(3)
    noise, more = (torch.randn(4, *teacher.shape, generator=rng) for _ in range(2))
    with torch.no_grad():
        expected = (teacher.decode(sample(student, noise, times, {}, lambda: more)) / 2 + 0.5).clamp(0, 1)
    assert (torch.from_numpy(images).permute(0, 3, 1, 2) - expected).abs().max() < 1e-3
