"""EDM's preconditioning in canonical time: closed forms in float64, diffusers' schedulers, refusals."""

import math
import re

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
)
from torch import nn

from distill.config.recipe import Recipe
from distill.config.sections import TeacherRecipe
from distill.training import setup
from teachers.core.denoiser import Denoiser
from teachers.core.edm_path import Edm
from teachers.core.few_step import initial_x_t
from teachers.core.schedule import data_scale, schedule
from teachers.core.trigflow import integrate
from teachers.families.analytic import eight_gaussians
from teachers.families.edm_exports import edm_scheduler
from teachers.loading.registry import load_teacher
from tests.teachers import tiny_pipelines

KINDS = [EDMEulerScheduler, EDMDPMSolverMultistepScheduler]
FLOAT64 = torch.float64


class ExactTime(Denoiser):
    """A denoiser whose timesteps stay in float64."""

    def timestep_input(self, t):
        return self.path.network_time(t)


class Preconditioned(nn.Module):
    """F of D = c_skip X + c_out F, where D is the posterior mean of a mixture of Gaussians."""

    def __init__(self, scheduler):
        super().__init__()
        self.config, self.mixture = scheduler.config, eight_gaussians()

    def forward(self, sample, timestep, return_dict=True):
        sigma, data = torch.exp(4 * timestep)[:, None], self.config["sigma_data"]
        norm = torch.sqrt(sigma**2 + data**2)
        x = sample * norm  # c_in = 1 / norm
        mean = self.mixture.posterior_mean(x, torch.ones_like(sigma[:, 0]), sigma[:, 0])
        sign = 1 if self.config["prediction_type"] == "epsilon" else -1
        return ((mean - data**2 / norm**2 * x) * norm / (sign * sigma * data),)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_edm_network_is_the_posterior_in_canonical_time(prediction, sigma_data):
    """x0 is D / sigma_data, the velocity is -F or F, and the input of the network is x_t; in float64."""
    scheduler = EDMEulerScheduler(prediction_type=prediction, sigma_data=sigma_data)
    path, kind = schedule(scheduler, sigma_data, edm=True)
    network = Preconditioned(scheduler)
    denoiser = ExactTime(network, path, kind)
    t = torch.linspace(path.t_min, path.t_max, 64, dtype=FLOAT64)
    x = torch.randn(64, 2, dtype=FLOAT64, generator=torch.Generator().manual_seed(0))
    sigma = sigma_data * torch.tan(t)
    native = x * torch.sqrt(sigma**2 + sigma_data**2)[:, None]
    mean = network.mixture.posterior_mean(native, torch.ones_like(sigma), sigma) / sigma_data
    x0, z = denoiser.predict_x0_and_noise(x, t, {})
    torch.testing.assert_close(x0, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(z * sigma[:, None], native - sigma_data * mean, rtol=1e-8, atol=1e-8)
    output = network(x, sigma.log() / 4)[0]
    sign = -1 if prediction == "epsilon" else 1
    torch.testing.assert_close(denoiser.velocity(x, t, {}), sign * output, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(denoiser.velocity_scale(t), torch.ones_like(t))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])
def test_coefficients_times_and_steps_are_those_of_the_scheduler(kind, sigma_schedule):
    scheduler = kind(sigma_schedule=sigma_schedule, sigma_max=120.0, rho=5.0)
    path, _ = schedule(scheduler, 0.5, edm=True)
    assert isinstance(path, Edm) and path.sigma_data == 0.5
    assert (path.t_min, path.t_max) == (math.atan(0.004), math.atan(240.0))
    scheduler.set_timesteps(7)
    angles = torch.tensor(path.solver_times(7), dtype=FLOAT64)
    torch.testing.assert_close(path.native(angles)[1].float(), scheduler.sigmas, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(path.network_time(angles[:-1]).float(), scheduler.timesteps, rtol=1e-4, atol=1e-4)
    timesteps = torch.linspace(0, 999, 200, dtype=FLOAT64)
    angles = path.angle(timesteps)
    torch.testing.assert_close(path.timestep(angles), timesteps, rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(path.of_network_time(path.network_time(angles)), timesteps, rtol=1e-9, atol=1e-7)
    assert path.network_time(torch.zeros(1, dtype=FLOAT64)).isfinite().all()  # clean data
    inner = angles[2:-2].clone().requires_grad_()
    (slope,) = torch.autograd.grad(path.network_time(inner).sum(), inner)
    torch.testing.assert_close(slope, 1 / (4 * inner.sin() * inner.cos()), rtol=1e-9, atol=0)


def test_the_stock_scheduler_begins_at_initial_x_t_and_follows_the_ode():
    scheduler = EDMEulerScheduler()
    path, kind = schedule(scheduler, 0.5, edm=True)
    network = Preconditioned(scheduler)
    denoiser = ExactTime(network, path, kind)
    noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(6)
    x = noise * scheduler.init_noise_sigma
    for i, step in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, step)
        if i == 0:
            start = initial_x_t(denoiser, noise, path.t_max)
            torch.testing.assert_close(scaled, start, rtol=1e-6, atol=1e-6)
        output = network(scaled.double(), step.double().expand(16))[0].float()
        x = scheduler.step(output, step, x)[0]
    ours = integrate(lambda x, t: denoiser.velocity(x, t, {}), start.double(), path.solver_times(6))
    torch.testing.assert_close(ours.float() * 0.5, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("times", [[1.5645], [1.5645, 1.1], [1.3, 0.6]])
def test_the_exported_scheduler_has_the_levels_of_the_student(times):
    path, prediction = schedule(EDMEulerScheduler(), 0.5, edm=True)
    scheduler = edm_scheduler(Denoiser(nn.Identity(), path, prediction), times)
    angles = torch.tensor(times, dtype=FLOAT64)
    scheduler.set_timesteps(len(times))
    torch.testing.assert_close(scheduler.sigmas[:-1].double(), 0.5 * angles.tan(), rtol=1e-5, atol=0)
    torch.testing.assert_close(scheduler.timesteps.double(), path.network_time(angles), rtol=1e-5, atol=1e-6)
    assert scheduler.sigmas[-1] == 0 and scheduler.config.prediction_type == "epsilon"


REFUSED = {
    "sample": (
        EDMDPMSolverMultistepScheduler(prediction_type="sample"),
        "prediction_type of EDMDPMSolverMultistepScheduler must be epsilon or v_prediction, got 'sample'",
    ),
    "no levels": (
        EDMEulerScheduler(sigma_min=3.0, sigma_max=3.0),
        "sigma_min of EDMEulerScheduler must be below its sigma_max 3, got 3",
    ),
    "one timestep": (
        EDMEulerScheduler(num_train_timesteps=1),
        "num_train_timesteps of EDMEulerScheduler must be at least 2, the ends of its grid, got 1",
    ),
    "zero": (EDMEulerScheduler(sigma_data=0), "sigma_data of EDMEulerScheduler must be a number above 0, got 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_schedules_are_refused(name):
    scheduler, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        schedule(scheduler, 0.5, edm=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.first_is_quick
def test_families_that_cannot_sample_it_refuse_it(kind, tokenizer):
    pipe = tiny_pipelines.dit(tokenizer)
    pipe.scheduler = kind()
    with pytest.raises(ValueError, match=f"the schedule of {kind.__name__} is not supported: this family's schedules"):
        load_teacher(pipe)


@pytest.mark.parametrize("edm", [True, False])
def test_a_consistency_model_is_no_teacher(edm):
    with pytest.raises(ValueError, match=r"must be that of a diffusion model, got CMStochasticIterativeScheduler"):
        schedule(CMStochasticIterativeScheduler(), 1.0, edm=edm)


def labelled(tokenizer, scheduler=None, **changes):
    return tiny_pipelines.edm(tokenizer, scheduler, **({"num_class_embeds": 10} | changes))


PIPELINES = {
    "classes of another kind": (
        lambda tokenizer: tiny_pipelines.edm(tokenizer, class_embed_type="timestep"),
        "class_embed_type of the UNet2DModel must be null, with the number of classes as num_class_embeds, got 'time",
    ),
    "Fourier features": (
        lambda tokenizer: labelled(tokenizer, time_embedding_type="fourier"),
        "time_embedding_type of the UNet2DModel must be positional, got fourier",
    ),
    "grey": (
        lambda tokenizer: labelled(tokenizer, in_channels=1, out_channels=1),
        "must have square images of 3 channels, got in_channels 1, out_channels 1, sample_size 16",
    ),
    "a learned variance": (lambda tokenizer: labelled(tokenizer, out_channels=6), "got in_channels 3, out_channels 6"),
    "a table": (
        lambda tokenizer: labelled(tokenizer, DDPMScheduler()),
        "the schedule of DDPMScheduler is not supported: this family's schedules must be EDM's (EDMEulerScheduler)",
    ),
    "a consistency model": (
        lambda tokenizer: labelled(tokenizer, CMStochasticIterativeScheduler()),
        "the pipeline's scheduler must be that of a diffusion model, got CMStochasticIterativeScheduler",
    ),
    "DDPMPipeline": (
        lambda tokenizer: DDPMPipeline(tiny_pipelines.pixel_unet(), EDMEulerScheduler()),
        "the schedule of EDMEulerScheduler is not supported: this family's schedules must be variance preserving",
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.first_is_quick
def test_pipelines_that_cannot_be_teachers_are_refused_in_one_sentence(name, tokenizer):
    build, message = PIPELINES[name]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_teacher(build(tokenizer))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_prompt_is_the_number_of_a_class_and_there_is_no_guidance(tokenizer, tmp_path):
    pipe = labelled(tokenizer)
    pipe.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path)
    assert teacher.condition(["7", " 0 "])["class_labels"].tolist() == [7, 0]
    assert "guidance_scale" not in teacher.usual_call(18, 1.0)
    for prompt in ("10", "", "a cat"):
        with pytest.raises(ValueError, match=r"a prompt for this UNet2DModel must be a number from 0 to 9, got"):
            teacher.condition([prompt])
    with pytest.raises(ValueError, match=r"teacher.guidance must be 1 for a teacher of the family edm, got 2"):
        Recipe("run", TeacherRecipe(str(tmp_path), guidance=2.0), {"name": "dmd"})
    assert type(teacher).takes_prompts(str(tmp_path)) and teacher.prompted
    tiny_pipelines.edm(tokenizer).save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path)
    assert not type(teacher).takes_prompts(str(tmp_path)) and not teacher.prompted and teacher.condition(["x"]) == {}


@pytest.mark.parametrize("classes", [None, 10])
def test_a_network_in_memory_is_a_teacher_with_its_scheduler(classes):
    teacher = load_teacher(tiny_pipelines.pixel_unet(num_class_embeds=classes), EDMEulerScheduler())
    assert type(teacher).__name__ == "EdmUNet" and teacher.denoiser.path.sigma_data == 0.5


@pytest.mark.slow
def test_sigma_data_is_that_of_the_scheduler(tokenizer, tmp_path):
    """In a recipe without it, in Python, and refused if it is stated otherwise."""
    pipe = tiny_pipelines.stable_diffusion_xl(tokenizer, EDMEulerScheduler(sigma_data=0.7))
    pipe.save_pretrained(tmp_path)
    recipe = Recipe("run", TeacherRecipe(str(tmp_path)), {"name": "dmd"})
    assert setup.load_teacher(recipe, torch.device("cpu")).denoiser.path.sigma_data == 0.7
    assert load_teacher(tmp_path).denoiser.path.sigma_data == load_teacher(pipe).denoiser.path.sigma_data == 0.7
    message = "teacher.sigma_data must be null or 0.7, that of the EDMEulerScheduler, got 1"
    with pytest.raises(ValueError, match=message):
        load_teacher(pipe, sigma_data=1.0)
    with pytest.raises(ValueError, match=message):
        load_teacher(tmp_path, sigma_data=1.0)
    assert data_scale(None, None, 1.3) == 1.3 and data_scale(None, 0.5, 1.3) == 0.5
