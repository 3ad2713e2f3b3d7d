"""Denoise, re-noise: the only sampler of students.

Multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1) at falling angles; DMD's multi-step
students (DMD2, arXiv 2405.14867, section 4.5) run the same loop. Exported pipelines do the same with diffusers' parts.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from teachers.core.denoiser import Condition, Denoiser
from teachers.core.few_step import start
from teachers.core.teacher import Teacher
from teachers.core.trigflow import add_noise, integrate


def sample(
    student: Denoiser, noise: Tensor, times: Sequence[float], cond: Condition, more_noise: Callable[[], Tensor]
) -> Tensor:
    """x0 (B, ...) from unit-variance `noise` (B, ...) through the angles `times` (radians, falling).

    `more_noise()` gives fresh noise of the same shape for every step after the first; len(times) network evaluations.
    A gradient flows through the last evaluation only: what comes before it is a multi-step student's own input, which
    training simulates (DMD2, section 4.5).
    """
    x_t = start(student, noise, times[0])
    with torch.no_grad():
        for now, then in pairwise(times):
            x0 = student.denoise(x_t, _angles(now, noise), cond)
            x_t = add_noise(x0, more_noise(), _angles(then, noise))
    return student.denoise(x_t, _angles(times[-1], noise), cond)


def _angles(t: float, noise: Tensor) -> Tensor:
    return torch.full((len(noise),), t, device=noise.device)


def teacher_endpoint(teacher: Teacher, noise: Tensor, cond: Condition, num_steps: int, guidance: float) -> Tensor:
    """The teacher's own endpoint (B, ...) from unit-variance `noise`: `num_steps` steps of DDIM in canonical time."""
    times = teacher.denoiser.path.solver_times(num_steps)
    x = start(teacher.denoiser, noise, times[0])
    return integrate(lambda x_t, t: teacher.velocity(x_t, t.to(x_t.dtype), cond, guidance), x, times)
