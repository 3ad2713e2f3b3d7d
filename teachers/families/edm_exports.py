"""`EdmExports`: exports of students with EDM's preconditioning, in the teacher's own pipeline and at its noise levels.

The stochastic DPM-Solver++ of first order (Lu et al. 2022, arXiv 2211.01095) steps from X at the noise level sigma to

    X' = D + sigma' (r z + sqrt(1 - r^2) z'),    r = sigma' / sigma,    z = (X - D) / sigma,

with new noise z'. That adds noise for the second level as `teachers.core.sampling.sample` does, apart from the share r
of the first noise, which is 0.012 between sigma_max = 80 and the angle 1.1 rad. Its two noise levels are sigma_max and
sigma_min, so students have one or two steps.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import EDMDPMSolverMultistepScheduler
from torch import Tensor

from teachers.core.denoiser import Denoiser
from teachers.core.edm_path import Edm
from teachers.core.few_step import check_times
from teachers.families.native_exports import NativeExports

MAX_STEPS = 2


class EdmExports(NativeExports):
    """A family whose pipelines can also sample EDM's schedule."""

    takes_edm: ClassVar[bool] = True

    def check_exportable(self, times: Sequence[float]) -> None:
        if isinstance(self.denoiser.path, Edm) and len(times) > MAX_STEPS:
            raise ValueError(
                f"a student with EDM's schedule must have at most {MAX_STEPS} steps, got {len(times)}: the scheduler "
                "of its export has no other noise levels"
            )
        super().check_exportable(times)

    def consistency_export(self, student: Denoiser, times: Sequence[float]) -> tuple[Any, Tensor]:
        if not isinstance(student.path, Edm):
            return super().consistency_export(student, times)
        angles = torch.tensor(times, dtype=torch.float64)
        return edm_scheduler(student, times), student.path.network_time(angles)

    def added_noise(self, scheduler: Any, sample: Tensor) -> Tensor | None:
        if not isinstance(scheduler, EDMDPMSolverMultistepScheduler):
            return super().added_noise(scheduler, sample)
        level = scheduler.sigmas[scheduler.step_index]
        return None if level == 0 else (sample - scheduler.model_outputs[-1]) / level


def edm_scheduler(student: Denoiser, times: Sequence[float]) -> EDMDPMSolverMultistepScheduler:
    """A scheduler that samples a student at one or two angles.

    Args:
        student: The student, on an `Edm` path.
        times: Decreasing angles in radians, one or two.

    Returns:
        The scheduler. Its timesteps are the network's c_noise.

    Raises:
        ValueError: If the times are invalid for the path.
    """
    path = student.path
    assert isinstance(path, Edm) and len(times) <= MAX_STEPS
    check_times(path, times)
    levels = path.native(torch.tensor(times, dtype=torch.float64))[1].tolist()
    return EDMDPMSolverMultistepScheduler(
        sigma_min=levels[-1] if len(levels) > 1 else path.sigma_min,
        sigma_max=levels[0],
        sigma_data=path.sigma_data,
        sigma_schedule="karras",  # an exponential schedule begins a single step at sigma_min
        num_train_timesteps=path.num_train_timesteps,
        prediction_type=student.prediction.removeprefix("edm_"),
        algorithm_type="sde-dpmsolver++",
        solver_order=1,
        final_sigmas_type="zero",
    )
