"""Stock diffusers schedulers for few-step students.

diffusers' `LCMScheduler` implements multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1):
denoise, then add noise for the next level. Its N steps always use the timesteps (i + 1) T / N - 1. A student samples at
angles of its own, so exports change the table of noise levels, and the time embedding (`teachers.core.time_embedding`).
Users then pass no timesteps.

- `consistency_scheduler` changes the table of noise levels so that these timesteps have the student's angles.
- `flow_scheduler` is the counterpart for rectified flow: the stochastic Euler scheduler is the same sampler, and a
  shift moves its second step to any level.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LCMScheduler
from torch import Tensor, nn

from teachers.core.denoiser import SOFT_WIDTH, Denoiser
from teachers.core.noise_path import NoisePath
from teachers.core.trigflow import Flow, VariancePreserving


def lcm_timesteps(path: NoisePath, num_steps: int) -> list[int]:
    """The decreasing timesteps of `LCMScheduler` for `num_steps` steps with `original_inference_steps=num_steps`."""
    stride = path.num_train_timesteps // num_steps
    return [stride * i - 1 for i in range(num_steps, 0, -1)]


def check_times(path: NoisePath, times: Sequence[float]) -> None:
    """Check a student's sampling times.

    Raises:
        ValueError: If `times` is empty, does not decrease, or leaves [t_min, t_max] of the path.
    """
    if not times or any(b >= a for a, b in pairwise(times)):
        raise ValueError(f"a student's times must be decreasing angles, at least one, got {list(times)}")
    if times[0] > path.t_max + 1e-6 or times[-1] < path.t_min - 1e-6:
        raise ValueError(
            f"a student's times must be in [{path.t_min:.4f}, {path.t_max:.4f}] radians, got {list(times)}"
        )


def consistency_scheduler(denoiser: Denoiser, times: Sequence[float]) -> LCMScheduler:
    """A scheduler that samples a student at given angles in len(times) steps.

    Its table is passed as `trained_betas`, because creating a scheduler from another one's config can change defaults.

    Args:
        denoiser: The student, on a variance-preserving path.
        times: Decreasing angles in radians.

    Returns:
        The scheduler. Its timesteps are `lcm_timesteps`.

    Raises:
        ValueError: If the path is not variance preserving, or the times are invalid for it.
    """
    path = denoiser.path
    if not isinstance(path, VariancePreserving):
        raise ValueError(f"LCMScheduler needs a variance-preserving path, got {type(path).__name__}")
    output_angles = denoiser.output_angle(torch.tensor(times, dtype=torch.float64)).tolist()
    check_times(path, output_angles)
    if not np.allclose(output_angles[1:], times[1:], rtol=0, atol=1e-9):
        raise ValueError(
            f"times after the first must be at most {denoiser.max_angle} - {SOFT_WIDTH} radians for a student with "
            f"that max_angle, got {list(times)}"
        )
    if times[-1] < denoiser.boundary_angle - 1e-9:
        raise ValueError(
            f"a student's times must be at least its boundary_angle {denoiser.boundary_angle}, got {list(times)}"
        )
    anchors = [0, *reversed(lcm_timesteps(path, len(times)))]
    angles = torch.tensor([path.t_min, *reversed(output_angles)], dtype=torch.float64)
    levels = path.log_ratio
    if not np.allclose(path.timestep(angles)[1:].numpy(), anchors[1:], atol=1e-6):
        knots = np.log(np.tan(angles.numpy())) + math.log(path.sigma_data)
        levels = torch.from_numpy(np.interp(np.arange(path.num_train_timesteps), anchors, knots))
    alphas = torch.sigmoid(-2 * levels)
    betas = 1 - torch.cat([alphas[:1], alphas[1:] / alphas[:-1]])
    return LCMScheduler(
        num_train_timesteps=path.num_train_timesteps,
        trained_betas=betas.tolist(),
        original_inference_steps=len(times),
        prediction_type=denoiser.prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_scaling=1e6,  # c_skip = 0, c_out = 1: the student's x0 is its consistency function
    )


@torch.no_grad()
def drop_variance(network: Any, channels: int) -> None:
    """Remove the output channels of a learned variance from a UNet, in place; `LCMScheduler` takes none.

    Args:
        network: The UNet, whose last layer is `conv_out`.
        channels: Number of channels of a sample; the first ones of the output remain.
    """
    if network.config.out_channels == channels:
        return
    old = network.conv_out
    layer = nn.Conv2d(old.in_channels, channels, old.kernel_size, padding=old.padding, bias=old.bias is not None)
    network.conv_out = layer.to(old.weight).requires_grad_(old.weight.requires_grad)
    network.conv_out.weight.copy_(old.weight[:channels])
    if old.bias is not None:
        network.conv_out.bias.copy_(old.bias[:channels])
    network.register_to_config(out_channels=channels)


def native_levels(path: NoisePath, times: Sequence[float]) -> list[float]:
    """The native sigma of a rectified flow (alpha + sigma = 1) at the angles `times`."""
    levels: list[float] = path.native(torch.tensor(times, dtype=torch.float64))[1].tolist()
    return levels


def is_default_schedule(denoiser: Denoiser, times: Sequence[float]) -> bool:
    """Whether `flow_scheduler` reaches `times` from their number alone: one or two steps from pure noise."""
    return len(times) <= 2 and abs(times[0] - denoiser.path.t_max) < 1e-6


def flow_scheduler(
    denoiser: Denoiser, times: Sequence[float], passes_sigmas: bool = False
) -> tuple[FlowMatchEulerDiscreteScheduler, Tensor]:
    """A scheduler for rectified flow that samples a student at given angles.

    Stock pipelines request evenly spaced sigmas: either they pass 1, ..., 1/N themselves (`passes_sigmas`), or the
    scheduler uses 1 to its own smallest level, which its shift has already changed once. One more shift moves the
    second of two sigmas to any level, so one or two steps need no further argument. Other times need
    `sigmas=native_levels(...)` in the pipeline's call.

    Args:
        denoiser: The student, on a rectified-flow path.
        times: Decreasing angles in radians.
        passes_sigmas: Whether the pipeline passes linspace(1, 1/N, N) to the scheduler, as Flux does.

    Returns:
        The scheduler, and the timesteps (len(times),) that the network receives from the pipeline.

    Raises:
        ValueError: If the path is not a rectified flow, or the times are invalid for it.
    """
    path = denoiser.path
    if not isinstance(path, Flow):
        raise ValueError(f"FlowMatchEulerDiscreteScheduler needs a rectified-flow path, got {type(path).__name__}")
    check_times(path, times)
    levels, shift = native_levels(path, times), 1.0
    if is_default_schedule(denoiser, times) and len(times) == 2:
        odds = levels[1] / (1 - levels[1])  # a shift multiplies the odds s / (1 - s)
        shift = odds if passes_sigmas else math.sqrt(odds * (path.num_train_timesteps - 1))
    scheduler = FlowMatchEulerDiscreteScheduler(path.num_train_timesteps, shift=shift, stochastic_sampling=True)
    if not is_default_schedule(denoiser, times):
        scheduler.set_timesteps(sigmas=levels)
    elif passes_sigmas:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / len(times), len(times)).tolist())
    else:
        scheduler.set_timesteps(len(times))
    assert np.allclose(scheduler.sigmas[:-1].numpy(), levels, rtol=0, atol=1e-5)
    return scheduler, scheduler.timesteps


def initial_x_t(denoiser: Denoiser, noise: Tensor, t: float) -> Tensor:
    """Canonical x_t of a pipeline that starts from standard normal native noise.

    Args:
        denoiser: The student or teacher.
        noise: Standard normal noise, (B, ...).
        t: The first angle in radians.

    Returns:
        noise / start_scale(t), shape of `noise`.
    """
    return noise / _scale(denoiser.path, t)


@lru_cache(maxsize=64)
def _scale(path: NoisePath, t: float) -> float:
    return path.start_scale(torch.tensor([t], dtype=torch.float64)).item()
