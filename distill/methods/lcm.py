"""Latent Consistency Models (Luo et al. 2023, arXiv 2310.04378): consistency distillation with a guided solver step.

A neighbour of a noisy sample on its trajectory is one guided DDIM step of the teacher away. The student's consistency
function should have the same value at both. In contrast to sCM the step is finite, so no derivative of the network is
needed: a training step costs one evaluation of the guided teacher and two of the student. Section numbers are the
paper's, equation numbers in brackets those of Consistency Models (Song et al. 2023, arXiv 2303.01469).

In TrigFlow, for data of unit variance:

    f(x, t) = cos t x - sin t F(x, t)                the student; f(x, 0) = x holds without c_skip and c_out [5]
    x_s = cos(t - s) x_t - sin(t - s) v(x_t, t)      a DDIM step of the teacher from angle t to s

DDIM steps are linear in v, so a step with the guided velocity is the paper's (1 + w) Psi(c) - w Psi(empty) (section
4.2), with w = guidance - 1.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distill.config.typed import InvalidOption, default_of, option, redefined
from distill.data.batch import Batch
from distill.methods.base import Logs
from distill.methods.consistency import Consistency, ConsistencyOptions
from teachers.core.denoiser import SOFT_WIDTH, Condition, Denoiser
from teachers.core.teacher import Teacher
from teachers.core.trigflow import add_noise, expand, rotate


@dataclass
class LCMOptions(ConsistencyOptions):
    """`method:` in a recipe with `name: lcm`."""

    solver_steps: int = option(
        50,
        "Number of the teacher's DDIM steps from noise to data; the solver skips T / solver_steps of T timesteps "
        "(the paper's k: 20 of 1000).",
        at_least=1,
        at_most=10_000,
    )
    loss: Literal["huber", "l2"] = option("huber", "Distance d: pseudo-Huber or squared error, a mean over elements.")
    huber_c: float = option(
        0.001, "c of the pseudo-Huber distance sqrt(|a - b|^2 + c^2) - c of each element.", above=0, at_most=1e6
    )
    target_ema: float = option(
        0.0,
        "Decay of the exponential moving average of the student that gives the targets; 0: the student itself.",
        at_least=0,
        below=1,
    )
    timesteps: tuple[int, ...] = option(
        (),
        "Native timesteps of the student's steps, decreasing, such as [999, 749, 499, 249]; []: one or two steps, with "
        "second_times.",
        at_least=1,
        at_most=100_000,
        order="decrease",
    )
    adaptation_steps: int = redefined(ConsistencyOptions, "adaptation_steps", 0)

    def check(self) -> None:
        super().check()
        if self.timesteps and self.second_times != default_of(ConsistencyOptions, "second_times"):
            raise InvalidOption(
                "second_times",
                f"cannot be combined with {{}}, which already has the time of every step; remove one of them, got "
                f"{list(self.second_times)} and {list(self.timesteps)}",
                ["timesteps"],
            )


class LCM(Consistency):
    """A latent consistency model: a student of one or two steps, or of as many as `timesteps`.

    Needs latents (of real images, or of the teacher's samples) with their captions. See the module's docstring for the
    source, and `distill.methods.base.Distiller` for the arguments.
    """

    Options = LCMOptions
    options: LCMOptions
    grid: Tensor

    def __init__(self, teacher: Teacher, guidance: float, options: LCMOptions, student: Denoiser | None = None) -> None:
        super().__init__(teacher, guidance, options, student)
        self.times = self.angles(options.timesteps)
        self._check_times()
        self.target = copy.deepcopy(self.student).requires_grad_(False) if options.target_ema else None
        grid = torch.tensor(self.student.path.solver_times(options.solver_steps)).float()  # from pure noise to data
        self.register_buffer("grid", grid, persistent=False)

    def _check_times(self) -> None:
        """Raise ValueError if the later of several `timesteps` are where the student cannot be exported."""
        later, student = torch.tensor(self.times[1:], dtype=torch.float64), self.student
        if not torch.equal(student.output_angle(later), later):
            last = student.path.timestep(torch.tensor([self.options.max_angle - SOFT_WIDTH])).int().item()
            raise ValueError(
                "a student with method.adaptation_steps above 0 must have method.timesteps after the first at most "
                f"{last} (method.max_angle), got {list(self.options.timesteps)}"
            )
        if bool((later < student.boundary_angle).any()):
            raise ValueError(
                f"method.timesteps of a teacher that predicts the sample must be at angles of at least "
                f"method.boundary_angle {student.boundary_angle}, got {list(self.options.timesteps)}"
            )

    def averages(self) -> Sequence[tuple[Denoiser, float]]:
        return [] if self.target is None else [(self.target, self.options.target_ema)]

    def sampling_schedules(self) -> list[list[float]]:
        return [self.times] if self.options.timesteps else super().sampling_schedules()

    def step_counts(self, times: Sequence[float]) -> tuple[int, ...]:
        """One step, and all steps: parts of a longer schedule are not what an exported pipeline samples."""
        return tuple(sorted({1, len(times)}))

    def forward(self, phase: str, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        """The consistency distillation loss (algorithm 1), or the adaptation loss in the first `adaptation_steps`."""
        assert batch.latents is not None
        x0, z = batch.latents, batch.rng.normal(*batch.latents.shape[1:])
        adapting = step < self.options.adaptation_steps
        t, s = (self.uniform_angles(batch), None) if adapting else self.interval(batch)
        x_t = add_noise(x0, z, t)
        guidance, cond = self.sample_guidance(batch)
        with torch.no_grad():
            drift = self.teacher.velocity(x_t, t, batch.cond, guidance)
        if s is None:
            return self.adapt(x_t, t, drift, cond)
        target = self.solve(x_t, t, s, drift, cond)
        error = self.student.denoise(x_t, t, cond) - target
        loss = self.distance(error).mean()  # [7]
        return loss, {"error": error.detach().abs().mean(), "loss": loss.detach()}

    def interval(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Angles t (B,) of the teacher's solver steps, uniform, and the angles s (B,) after one step (section 4.3)."""
        count = len(self.grid) - 1
        index = (batch.rng.uniform() * count).long().clamp(max=count - 1)
        return self.grid[index], self.grid[index + 1]

    @torch.no_grad()
    def solve(self, x_t: Tensor, t: Tensor, s: Tensor, drift: Tensor, cond: Condition) -> Tensor:
        """The target f(x_s, s): the average's or the student's consistency function after one solver step.

        Args:
            x_t: Noisy samples (B, ...).
            t: Their angles (B,) in radians.
            s: The angles (B,) after the step; 0 is clean data, where f(x, 0) = x.
            drift: The teacher's guided velocity at x_t.
            cond: The student's conditions, B rows.

        Returns:
            The target, shape of x_t.
        """
        x_s = rotate(x_t, drift, t, s)  # [6] with DDIM as the solver
        network = self.student if self.target is None else self.target  # theta^- of [7]
        value = network.denoise(x_s, s.clamp_min(max(self.student.path.t_min, 1e-3)), cond)
        return torch.where(expand(s, x_s) > 0, value, x_s)  # f(x, 0) = x [5]

    def distance(self, error: Tensor) -> Tensor:
        """d of each element: the pseudo-Huber distance or the squared error."""
        if self.options.loss == "l2":
            return error.square()
        c = self.options.huber_c
        return torch.sqrt(error.square() + c**2) - c
