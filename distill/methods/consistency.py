"""`Consistency`: the common code of consistency distillation (sCM, LCM): the student, its guidance, and its steps.

The student is a consistency function f(x_t, t) = cos t x_t - sin t F(x_t, t): it maps every point of a trajectory of
the teacher's probability-flow ODE to the trajectory's end (Song et al. 2023, arXiv 2303.01469). In TrigFlow the
boundary condition f(x, 0) = x holds by itself, except for networks that predict the sample
(`Denoiser.boundary_angle`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.config.typed import Checked, InvalidOption, option
from distill.data.batch import Batch
from distill.methods.base import Distiller, Logs
from teachers.core.denoiser import SOFT_WIDTH, Condition, Denoiser
from teachers.core.teacher import Teacher
from teachers.core.trigflow import HALF_PI


@dataclass
class ConsistencyOptions(Checked):
    """The options that all consistency methods have."""

    guidances: tuple[float, ...] = option(
        (),
        "Guidance scales to sample from; the scale is then an input of the student. []: one fixed scale.",
        at_least=1,
        at_most=1000,
    )
    adaptation_steps: int = option(
        200,
        "First steps, in which the student adapts to time_scale and max_angle; 0: neither is used.",
        at_least=0,
        at_most=10**9,
    )
    time_scale: float = option(
        8.0, "Scale of the student's time input: time_scale * t instead of the native timestep.", above=0, at_most=1e4
    )
    max_angle: float = option(
        1.2,
        "Angle in radians that limits where an epsilon student's output is evaluated near the end of time.",
        above=SOFT_WIDTH,
        at_most=math.pi,
    )
    boundary_angle: float = option(
        0.4,
        "Angle in radians below which a student that predicts the sample is blended with its input, so that "
        "f(x, 0) = x. Second times must be at least this for such a student.",
        above=0,
        below=HALF_PI,
    )
    second_times: tuple[float, ...] = option(
        (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.1, 0.2, 0.3, 1.0, 1.1, 1.2, 1.3),
        "Candidate angles in radians of the second step; the best on held-out samples is exported. The first one is "
        "used in evaluations during training. Those that the student cannot be exported at are left out.",
        above=0,
        below=HALF_PI,
    )

    def check(self) -> None:
        if not self.second_times:
            raise InvalidOption("second_times", "must have at least one angle, got []")


class Consistency(Distiller):
    """A consistency student. A subclass computes the loss; see `distill.methods.base.Distiller` for the arguments."""

    options: ConsistencyOptions

    def __init__(
        self, teacher: Teacher, guidance: float, options: ConsistencyOptions, student: Denoiser | None = None
    ) -> None:
        super().__init__(teacher, guidance, options, student)
        self.check_run(options, guidance)
        if options.guidances:
            teacher.embed_guidance(self.student, guidance)
        if options.adaptation_steps:
            teacher.refit_time_embedding(self.student, options.time_scale)
            self.student.max_angle = options.max_angle
        if self.student.prediction == "sample":
            self.student.boundary_angle = options.boundary_angle
        self.student.is_consistency = True

    @classmethod
    def check_run(cls, options: ConsistencyOptions, guidance: float) -> None:
        scales = options.guidances
        if scales and not min(scales) <= guidance <= max(scales):
            raise ValueError(
                f"teacher.guidance, at which the student is evaluated, must be within method.guidances {list(scales)}, "
                f"got {guidance}"
            )

    @classmethod
    def needs_latents(cls, options: ConsistencyOptions) -> bool:
        return True

    def sampling_schedules(self) -> list[list[float]]:
        path, output_angle = self.student.path, self.student.output_angle
        second_times = [
            angle
            for angle in self.options.second_times
            if max(path.t_min, self.student.boundary_angle - 1e-9) < angle < path.t_max
            and output_angle(torch.tensor(angle)) == angle
        ]
        return [[path.t_max, angle] for angle in second_times] or [[path.t_max]]

    def startup_messages(self) -> Sequence[str]:
        schedules = self.sampling_schedules()
        if len(schedules) > 1 or len(schedules[0]) > 1:
            return ()
        angles = list(self.options.second_times)
        return (f"the student has one step only: it cannot be exported with a second step at any of {angles}",)

    def step_counts(self, times: Sequence[float]) -> tuple[int, ...]:
        return tuple(range(1, len(times) + 1))

    def adapt(self, x_t: Tensor, t: Tensor, drift: Tensor, cond: Condition) -> tuple[Tensor, Logs]:
        """Regress the student with its rescaled time input onto the drift; returns the loss and the values to log."""
        error = (self.student.velocity(x_t, t, cond) - drift).square().flatten(1).mean(1)
        loss = (error / self.error_scale(t).square()).mean()
        return loss, {"adaptation_loss": loss.detach()}

    def error_scale(self, t: Tensor) -> Tensor:
        """What errors of the student's velocity are divided by, (B,): |dv / d output| at angles t (B,).

        The loss is then the error of the network's output, and no part of the time interval dominates it. A sample
        network is an exception: its output is x0, which matters least at small angles, where f(x, 0) = x must hold. Its
        velocity is bounded by the boundary condition, and the loss is the error of the velocity.
        """
        return torch.ones_like(t) if self.student.boundary_angle else self.student.velocity_scale(t)

    def uniform_angles(self, batch: Batch) -> Tensor:
        """Random angles (B,), uniform over the schedule."""
        low, high = self.student.path.t_min, self.student.path.t_max
        return low + (high - low) * batch.rng.uniform()

    def sample_guidance(self, batch: Batch) -> tuple[float | Tensor, Condition]:
        """The teacher's guidance, one scale or (B,), and the student's condition.

        With several scales the condition includes the scale (Meng et al. 2022, arXiv 2210.03142; SANA-Sprint's guidance
        embedding, arXiv 2503.09641).
        """
        if not self.options.guidances:
            return self.guidance, batch.cond
        scales = torch.tensor(self.options.guidances, device=batch.rng.device)
        guidance = scales[batch.rng.rows(len(scales))]
        return guidance, {**batch.cond, **self.teacher.guidance_condition(self.student, guidance)}
