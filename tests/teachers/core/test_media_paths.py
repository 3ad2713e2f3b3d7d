"""Noise schedules of clips and sounds against their own schedulers, at published sizes."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CosineDPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

from teachers.core.cosine_path import Cosine
from teachers.core.schedule import schedule
from teachers.core.scheduler_config import is_shifted
from teachers.core.trigflow import Flow, VariancePreserving

LTX = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}


@pytest.mark.parametrize("kind", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler])
@pytest.mark.parametrize("zero", [True, False])
def test_a_shifted_signal_to_noise_ratio_is_read_from_the_scheduler_s_own_table(kind, zero):
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = kind(**betas, snr_shift_scale=3.0, rescale_betas_zero_snr=zero, prediction_type="v_prediction")
    path, prediction = schedule(scheduler, 1.0)
    assert isinstance(path, VariancePreserving) and prediction == "v_prediction" and is_shifted(scheduler)
    alpha, _ = path.coefficients(torch.tensor([250.0, 500.0, 750.0]))
    torch.testing.assert_close(alpha.square().float(), scheduler.alphas_cumprod[[250, 500, 750]].float())
    plain = kind(**betas, snr_shift_scale=1.0, prediction_type="v_prediction")
    assert not is_shifted(plain)
    assert abs(schedule(plain, 1.0)[0].coefficients(torch.tensor([500.0]))[0] - alpha[1]) > 0.1


@pytest.mark.parametrize("clip", [(161, 512, 704), (25, 256, 256)])
@pytest.mark.parametrize("steps", [2, 8, 50])
def test_shift_and_terminal_of_ltx_are_those_of_its_pipeline(clip, steps):
    frames, height, width = clip
    tokens = ((frames - 1) // 8 + 1) * (height // 32) * (width // 32)
    scheduler = FlowMatchEulerDiscreteScheduler(**LTX)
    mu = calculate_shift(tokens, 1024, 4096, 0.95, 2.05)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    path, _ = schedule(scheduler, 1.0, tokens)
    assert isinstance(path, Flow) and path.shift == pytest.approx(math.exp(mu))
    ours = path.timestep(torch.tensor(path.solver_times(steps), dtype=torch.float64)) / 1000
    torch.testing.assert_close(ours.float(), scheduler.sigmas, atol=1e-5, rtol=1e-5)


def test_one_step_with_a_terminal_is_at_pure_noise():
    path = Flow(shift=3.0, terminal=0.1)
    assert path.solver_times(1) == [math.pi / 2, 0.0]
    assert Flow(shift=3.0, terminal=None).solver_times(3) == Flow(shift=3.0).solver_times(3)


def test_wan_s_solver_has_its_flow_shift():
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    path, prediction = schedule(scheduler, 1.0, tokens=32760)
    assert isinstance(path, Flow) and path.shift == 5.0 and prediction == "flow_prediction"


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def test_entries_of_a_former_scheduler_s_config_are_ignored_as_its_class_ignores_them():
    wan = UniPCMultistepScheduler(**FLOW, flow_shift=3.0)
    assert schedule(FlowMatchEulerDiscreteScheduler.from_config(wan.config, shift=8.0), 1.0)[0].shift == 8.0
    ltx = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0, shift_terminal=0.1)
    path, _ = schedule(FlowMatchHeunDiscreteScheduler.from_config(ltx.config), 1.0, tokens=1000)
    assert path.shift == 3.0 and path.terminal is None


def test_dynamic_shifting_of_solvers_has_the_pipelines_defaults():
    path, _ = schedule(UniPCMultistepScheduler(**FLOW, use_dynamic_shifting=True), 1.0, tokens=4096)
    assert path.shift == pytest.approx(math.exp(1.15))


@pytest.mark.parametrize(("key", "value"), [("shift", -1), ("shift_terminal", 1.5), ("shift_terminal", "x")])
def test_impossible_shifts_are_refused(key, value):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.register_to_config(**{key: value})
    with pytest.raises(ValueError, match=f"{key} of FlowMatchEulerDiscreteScheduler must be .*got"):
        schedule(scheduler, 1.0)


@pytest.mark.parametrize("sigma_data", [1.0, 0.7])
def test_stable_audio_s_schedule_is_trigflow(sigma_data):
    scheduler = CosineDPMSolverMultistepScheduler(sigma_min=0.3, sigma_max=500, prediction_type="v_prediction")
    path, prediction = schedule(scheduler, sigma_data, cosine=True)
    assert isinstance(path, Cosine) and prediction == "v_prediction"
    scheduler.set_timesteps(20)
    angles = torch.tensor(path.solver_times(20)[:-1], dtype=torch.float64)
    torch.testing.assert_close((path.timestep(angles) / 1000).float(), scheduler.timesteps, atol=1e-6, rtol=1e-5)
    alpha, sigma = path.native(angles)
    torch.testing.assert_close((sigma / alpha).float(), scheduler.sigmas[:-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(alpha))
    torch.testing.assert_close(path.angle(path.timestep(angles)), angles)
    assert path.angle(torch.tensor([999.9])).item() <= path.t_max  # trained levels end at sigma_max
    t = angles.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(path.timestep(t).sum(), t)
    step = 1e-6
    torch.testing.assert_close(
        slope, (path.timestep(angles + step) - path.timestep(angles - step)) / (2 * step), rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (CosineDPMSolverMultistepScheduler(prediction_type="epsilon"), "prediction_type of .* must be v_prediction"),
        (CosineDPMSolverMultistepScheduler(sigma_data=0.5), "sigma_data of .* must be 1.0, got 0.5"),
        (CosineDPMSolverMultistepScheduler(final_sigmas_type="sigma_min"), "final_sigmas_type of .* must be zero"),
        (EDMDPMSolverMultistepScheduler(), "the schedule of EDMDPMSolverMultistepScheduler is not supported"),
    ],
    ids=["epsilon", "sigma_data", "final level", "another schedule with sigma_max"],
)
def test_other_schedules_of_sounds_are_refused(scheduler, message):
    with pytest.raises(ValueError, match=message):
        schedule(scheduler, 1.0, flow=False, variance_preserving=False, cosine=True)
