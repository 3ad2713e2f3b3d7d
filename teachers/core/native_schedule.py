"""Students on the teacher's own noise schedule: at timestep n, the latent has the teacher's alpha-bar(n).

A student samples at angles. `native_steps` moves them to whole timesteps of the teacher's table, so that the exported
pipeline can keep that table, and other schedulers, ControlNets, adapters and front ends see the noise levels that they
were made for. `native_scheduler` is diffusers' `LCMScheduler` (multistep consistency sampling) on that table.

An epsilon student with a `max_angle` is evaluated at `output_angle(t)`, so its first timestep is the one of that angle:
pure noise is passed to the network with an earlier timestep, as in DMD2's one-step SDXL (arXiv 2405.14867).

`LCMScheduler` reaches timesteps from their number alone only if they are (i + 1) T / N - 1; then the call needs
`num_inference_steps`. Other timesteps need `timesteps=[...]` in the call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import LCMScheduler
from torch import Tensor

from teachers.core.denoiser import Denoiser
from teachers.core.few_step import check_times
from teachers.core.schedule import betas
from teachers.core.trigflow import VariancePreserving

NEAR = 1e-5  # of a timestep: angles this close to a whole timestep are that timestep


@dataclass(frozen=True)
class NativeSteps:
    """Sampling steps at whole timesteps of the teacher.

    Attributes:
        timesteps: Native timesteps, decreasing.
        times: The student's angles there, in radians.
        divisions: `original_inference_steps` of `LCMScheduler`: the largest number of steps that it accepts.
        regular: Whether `num_inference_steps=len(timesteps)` gives these timesteps.
    """

    timesteps: list[int]
    times: list[float]
    divisions: int
    regular: bool


def native_steps(denoiser: Denoiser, times: Sequence[float]) -> NativeSteps:
    """The sampling steps at whole timesteps that are nearest to decreasing angles.

    A consistency student (`Denoiser.is_consistency`) begins at an odd timestep, so that two steps by number alone, n
    and (n - 1) / 2, are right too.

    Args:
        denoiser: The student, on a variance-preserving path.
        times: Decreasing angles in radians.

    Returns:
        The steps.

    Raises:
        ValueError: If the path is not variance preserving, or two angles have the same nearest timestep.
    """
    path = denoiser.path
    if not isinstance(path, VariancePreserving):
        raise ValueError(f"native timesteps need a variance-preserving path, got {type(path).__name__}")
    check_times(path, times)
    exact = path.timestep(denoiser.output_angle(torch.tensor(times, dtype=torch.float64))).tolist()
    first = int(exact[0] + NEAR)
    if denoiser.is_consistency and first % 2 == 0 and first > 1:
        first -= 1
    timesteps = [first, *(_later_timestep(denoiser, round(step)) for step in exact[1:])]
    if any(b >= a for a, b in pairwise(timesteps)):
        raise ValueError(f"a student's times must have different native timesteps, got {timesteps}")
    count = len(timesteps)
    regular = timesteps == grid(first, count)
    divisions = count if regular else 2 if denoiser.is_consistency and _halves(denoiser, first) else 1
    return NativeSteps(timesteps, native_times(denoiser, timesteps), divisions, regular)


def native_times(denoiser: Denoiser, timesteps: Sequence[int]) -> list[float]:
    """The angles in radians of a student at native timesteps: those whose output angle is that of the timestep."""
    angles = denoiser.path.angle(torch.tensor(timesteps, dtype=torch.float64))
    times: list[float] = denoiser.inverse_output_angle(angles).tolist()
    return times


def is_native(denoiser: Denoiser, times: Sequence[float]) -> bool:
    """Whether all of a student's angles are at whole timesteps of a variance-preserving path."""
    if not isinstance(denoiser.path, VariancePreserving) or not times:
        return False
    try:
        steps = native_steps(denoiser, times)
    except ValueError:
        return False
    return all(abs(a - b) < 1e-7 for a, b in zip(steps.times, times, strict=True))


def grid(first: int, count: int) -> list[int]:
    """The timesteps of `LCMScheduler` that begin at `first`, by their number alone; [] if it cannot begin there."""
    stride, rest = divmod(first + 1, count)
    return [] if rest or not stride else [stride * i - 1 for i in range(count, 0, -1)]


def half_step(denoiser: Denoiser, times: Sequence[float]) -> list[float] | None:
    """The two angles that a consistency student has with `num_inference_steps=2` alone; None if it has none."""
    first = native_steps(denoiser, times[:1]).timesteps[0]
    return native_times(denoiser, grid(first, 2)) if denoiser.is_consistency and _halves(denoiser, first) else None


def anchors(denoiser: Denoiser, steps: NativeSteps) -> list[int]:
    """All timesteps that the scheduler passes to the network: those of the steps, and of two steps by number alone."""
    more = grid(steps.timesteps[0], steps.divisions) if denoiser.is_consistency else []
    return sorted({*steps.timesteps, *more}, reverse=True)


def native_scheduler(denoiser: Denoiser, steps: NativeSteps, trained_betas: Tensor | None = None) -> LCMScheduler:
    """`LCMScheduler` on the teacher's own table.

    Its `num_train_timesteps` is the student's first timestep + 1, which is where it starts; the table has all levels.
    More steps than `steps.divisions` raise an error.

    Args:
        denoiser: The student, on a variance-preserving path.
        steps: Its sampling steps.
        trained_betas: The betas of the teacher's scheduler, if they are at hand: they give its table bit for bit.

    Returns:
        The scheduler.
    """
    path = denoiser.path
    assert isinstance(path, VariancePreserving)
    computed = torch.tensor(betas(path.alphas_cumprod), dtype=torch.float32)
    choices = [computed] if trained_betas is None or len(trained_betas) != len(computed) else [trained_betas, computed]
    signal = path.alphas_cumprod.sqrt().float()
    # Gaps of the square roots, which scale the student's output: with zero terminal SNR some schedulers have 2^-24 as
    # the last alphas_cumprod and betas that give 0.
    gaps = [(torch.cumprod(1 - choice.float().cpu(), 0).sqrt() - signal).abs().max().item() for choice in choices]
    chosen = choices[gaps.index(min(gaps))]
    return LCMScheduler(
        num_train_timesteps=steps.timesteps[0] + 1,
        trained_betas=chosen.float().cpu().tolist(),
        original_inference_steps=steps.divisions,
        prediction_type=denoiser.prediction,
        clip_sample=False,
        steps_offset=1,  # pipelines of Stable Diffusion warn about others
        timestep_spacing="trailing",  # other schedulers made from this config begin at the student's timestep too
        timestep_scaling=1e6,  # c_skip = 0, c_out = 1: the student's x0 is its consistency function
    )


def _later_timestep(denoiser: Denoiser, step: int) -> int:
    """The timestep nearest to `step` at which a student can take a step after the first."""
    last = denoiser.path.num_train_timesteps - 1
    while step > 1 and not _is_plain(denoiser, step):
        step -= 1
    while step < last and denoiser.path.angle(torch.tensor([float(step)])).item() < denoiser.boundary_angle:
        step += 1
    return max(step, 1)


def _is_plain(denoiser: Denoiser, step: int) -> bool:
    """Whether a student is evaluated at the angle of a timestep itself, as noisy data needs it."""
    angle = denoiser.path.angle(torch.tensor([step], dtype=torch.float64))
    return bool(torch.equal(denoiser.output_angle(angle), angle))


def _halves(denoiser: Denoiser, first: int) -> bool:
    """Whether a student can take its second step at the timestep (first - 1) / 2."""
    second = grid(first, 2)[1:]
    return bool(second) and second[0] >= 1 and _later_timestep(denoiser, second[0]) == second[0]
