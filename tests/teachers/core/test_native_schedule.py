"""Students on the teacher's own noise schedule: native timesteps, their scheduler, and the folded time embedding."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, UniPCMultistepScheduler

from teachers.core.denoiser import Denoiser
from teachers.core.few_step import initial_x_t
from teachers.core.native_schedule import grid, half_step, is_native, native_scheduler, native_steps
from teachers.core.sampling import sample
from teachers.core.time_embedding import bake_timesteps, refit_time_embedding
from teachers.core.trigflow import VariancePreserving
from teachers.families.analytic import ExactDenoiser, MixtureNetwork, eight_gaussians
from teachers.pocket.parts import make_unet, sd15_scheduler

SD15 = VariancePreserving(sd15_scheduler().alphas_cumprod)


def exact(prediction="epsilon", max_angle=None, path=SD15):
    """A student in closed form: the posterior mean of a mixture of Gaussians."""
    student = ExactDenoiser(MixtureNetwork(eight_gaussians(), path, prediction), path, prediction)
    student.max_angle, student.is_consistency = max_angle, True
    return student


def stock_sample(student, scheduler, call, noise, seed):
    """What a stock pipeline's loop gives with a network of native timesteps and a stock scheduler."""
    scheduler.set_timesteps(**call)
    x, rng = noise * scheduler.init_noise_sigma, torch.Generator().manual_seed(seed)
    for t in scheduler.timesteps:
        output = student.network(scheduler.scale_model_input(x, t), t.double().expand(len(x)))[0]
        x = scheduler.step(output, t, x, generator=rng, return_dict=False)[0]
    return x


def in_house(student, times, noise, seed):
    rng = torch.Generator().manual_seed(seed)
    return sample(
        student, noise, times, {}, lambda: torch.randn(noise.shape, generator=rng, dtype=noise.dtype), torch.float64
    )


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("times", [[SD15.t_max], [SD15.t_max, 0.6], [SD15.t_max, 0.1], [1.3, 0.9, 0.5, 0.2]])
@pytest.mark.first_is_quick
def test_the_stock_scheduler_samples_the_closed_form_student(prediction, times):
    """Analytic teacher: LCMScheduler on the teacher's table against the project's sampler, from the same noise."""
    student = exact(prediction)
    steps = native_steps(student, times)
    scheduler = native_scheduler(student, steps, sd15_scheduler().betas)
    assert torch.equal(scheduler.alphas_cumprod, sd15_scheduler().alphas_cumprod)
    assert all(abs(a - b) < 5e-3 for a, b in zip(times, steps.times, strict=True))
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    call = {"num_inference_steps": len(times)} if steps.regular else {"timesteps": steps.timesteps}
    expected = in_house(student, steps.times, noise, 1)
    assert (stock_sample(student, scheduler, call, noise, 1) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler])
def test_the_table_with_zero_terminal_snr_ends_as_the_scheduler_s(kind):
    """Euler's and UniPC's betas give 0 at the end and their tables 2^-24, whose square root scales the output."""
    zero = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True}
    teacher = kind(**zero, prediction_type="v_prediction")
    student = exact("v_prediction", path=VariancePreserving(teacher.alphas_cumprod))
    scheduler = native_scheduler(student, native_steps(student, [student.path.t_max]), teacher.betas)
    assert (scheduler.alphas_cumprod.sqrt() - teacher.alphas_cumprod.sqrt()).abs().max() < 1e-5


def test_an_epsilon_student_with_max_angle_begins_at_the_timestep_of_its_output_angle():
    student = exact(max_angle=1.2)
    steps = native_steps(student, [SD15.t_max, 0.3])
    first = steps.timesteps[0]
    reached = student.output_angle(torch.tensor(steps.times[:1], dtype=torch.float64))
    assert SD15.angle(torch.tensor([float(first)])).item() == pytest.approx(reached.item(), abs=1e-12)
    assert 0 <= SD15.t_max - steps.times[0] < 0.1 and first % 2
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0 = (
        initial_x_t(student, noise, steps.times[0])
        - reached.sin() * student.network(noise, torch.full((64,), float(first), dtype=torch.float64))[0]
    ) / reached.cos()
    output = stock_sample(student, native_scheduler(student, steps), {"num_inference_steps": 1}, noise, 1)
    assert (output - x0).abs().max() < 1e-4


def test_two_steps_by_number_alone_are_right_for_a_consistency_student():
    student = exact()
    steps = native_steps(student, [SD15.t_max, 0.3])
    assert not steps.regular and steps.divisions == 2
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = in_house(student, half_step(student, steps.times), noise, 1)
    output = stock_sample(student, native_scheduler(student, steps), {"num_inference_steps": 2}, noise, 1)
    assert (output - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, LCMScheduler])
def test_schedulers_from_the_exported_config_give_one_right_step(kind):
    student = exact()
    steps = native_steps(student, [SD15.t_max])
    scheduler = kind.from_config(native_scheduler(student, steps).config)
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    output = stock_sample(student, scheduler, {"num_inference_steps": 1}, noise, 1)
    assert (output - in_house(student, steps.times, noise, 1)).abs().max() < (0.05 if kind != LCMScheduler else 1e-4)


@pytest.mark.parametrize(
    ("timesteps", "regular"), [([999], True), ([700], True), ([999, 499], True), ([699, 250], False), ([399], True)]
)
def test_timesteps_of_a_student_of_few_timesteps_stay_as_they_are(timesteps, regular):
    student = Denoiser(torch.nn.Identity(), SD15, "epsilon")
    steps = native_steps(student, SD15.angle(torch.tensor(timesteps)).tolist())
    assert steps.timesteps == timesteps and steps.regular == regular
    scheduler = native_scheduler(student, steps)
    assert len(scheduler.alphas_cumprod) == 1000
    assert is_native(student, steps.times) and not is_native(student, [t - 3e-4 for t in steps.times])
    scheduler.set_timesteps(1)
    assert scheduler.timesteps[0] == timesteps[0]
    for more in (3, 50):
        with pytest.raises(ValueError, match="num_inference_steps"):
            scheduler.set_timesteps(more)


def test_the_grid_is_that_of_lcm_scheduler():
    assert grid(999, 4) == [999, 749, 499, 249] and grid(999, 1) == [999] and grid(999, 3) == []


@pytest.mark.slow
def test_a_student_on_rescaled_time_is_folded_onto_native_timesteps():
    """At its own timesteps to 1e-4; at all others of the schedule to a tenth of a standard deviation."""
    torch.manual_seed(0)
    student = Denoiser(make_unet(), SD15, "epsilon")
    student.is_consistency = True
    refit_time_embedding(student, 8.0)
    student.max_angle = 1.2
    steps = native_steps(student, [SD15.t_max, 0.2])
    network = bake_timesteps(student, steps.times, torch.tensor(steps.timesteps), whole=True)
    x, cond = torch.randn(2, 4, 8, 8), torch.randn(2, 4, student.network.config.cross_attention_dim)

    def outputs(timesteps, times):
        with torch.no_grad():
            right = student.network(x, student.timestep_input(torch.tensor(times)), cond)[0]
            return network(x, torch.tensor(timesteps), cond)[0], right

    folded, right = outputs(steps.timesteps, steps.times)
    assert (folded - right).abs().max() < 1e-4 * right.std()
    others = [[101, 420], [550, 30]]
    for timesteps in others:
        angles = student.inverse_output_angle(SD15.angle(torch.tensor(timesteps))).tolist()
        folded, right = outputs(timesteps, angles)
        assert (folded - right).abs().max() < 0.1 * right.std()
