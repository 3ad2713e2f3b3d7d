"""Sampling of students, and the teacher's own ODE solution.

Students use multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1) at decreasing angles:
denoise, then add noise for the next angle. Multi-step students of DMD use the same loop (DMD2, arXiv 2405.14867,
section 4.5), and so do exported pipelines, with diffusers' schedulers.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from teachers.core.denoiser import Condition, Denoiser
from teachers.core.few_step import initial_x_t
from teachers.core.teacher import Teacher
from teachers.core.trigflow import add_noise, integrate
from teachers.support.threads import adapt_threads


def sample(
    student: Denoiser,
    noise: Tensor,
    times: Sequence[float],
    cond: Condition,
    more_noise: Callable[[], Tensor],
    angle_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sample from a student with len(times) network evaluations.

    Gradients flow through the last evaluation only: the earlier ones produce a multi-step student's input, which
    training simulates (DMD2, section 4.5).

    Args:
        student: The student.
        noise: Standard normal noise, (B, ...).
        times: Decreasing angles in radians.
        cond: The network's condition, B rows.
        more_noise: Returns new noise of the same shape for each step after the first.
        angle_dtype: Precision of the angles. Training uses float32, in which 1 / cos(t) has a relative error of up to
            1e-7 / cos(t): 1e-3 at the end of a cosine schedule.

    Returns:
        x0 of unit variance, shape of `noise`.
    """
    x_t = initial_x_t(student, noise, times[0])
    with torch.no_grad():
        for current, following in pairwise(times):
            x0 = student.denoise(x_t, _angles(current, noise, angle_dtype), cond)
            x_t = add_noise(x0, more_noise(), _angles(following, noise, angle_dtype)).to(noise.dtype)
    return student.denoise(x_t, _angles(times[-1], noise, angle_dtype), cond)


def _angles(t: float, noise: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.full((len(noise),), t, device=noise.device, dtype=dtype)


def teacher_endpoint(teacher: Teacher, noise: Tensor, cond: Condition, num_steps: int, guidance: float) -> Tensor:
    """Solve the teacher's probability-flow ODE from noise to data with DDIM steps.

    Args:
        teacher: The teacher.
        noise: Standard normal noise, (B, ...).
        cond: The network's condition, B rows.
        num_steps: Number of solver steps.
        guidance: Classifier-free guidance scale; 1.0 means none.

    Returns:
        x0 of unit variance, shape of `noise`.
    """
    adapt_threads()
    times = teacher.denoiser.path.solver_times(num_steps)
    x = initial_x_t(teacher.denoiser, noise, times[0])
    return integrate(lambda x_t, t: teacher.velocity(x_t, t.to(x_t.dtype), cond, guidance), x, times)
