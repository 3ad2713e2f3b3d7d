"""Distiller: the contract of a method.

A method is one class: its options, its networks, the order in which they train, and a loss for each turn. It never sees
an optimizer, an accelerator or a pipeline. Register it under the entry-point group `distill.distillers`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distill.draws import Draws
from teachers.denoiser import Condition, Denoiser
from teachers.teacher import Teacher

Logs = dict[str, Tensor]  # scalars, detached, averaged over the log interval


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `latents` (B, C, H, W) of unit variance, or None where the method needs prompts only."""

    cond: Condition
    draws: Draws
    latents: Tensor | None = None
    pairs: tuple[Tensor, Tensor] | None = None  # (noise, the teacher's ODE endpoint from it), for regression

    def __len__(self) -> int:
        return len(self.draws)


class Distiller(nn.Module, ABC):
    """Owns the student and the auxiliary networks as submodules; the teacher is frozen and is no submodule.

    `Options` is a dataclass of the keys that `method:` takes in a recipe. `turn_names` are the keys of `optimizers:`.
    """

    Options: ClassVar[type[Any]]
    turn_names: ClassVar[tuple[str, ...]] = ("student",)
    needs_latents: ClassVar[bool] = False

    student: Denoiser

    def __init__(self, teacher: Teacher, guidance: float, options: Any) -> None:
        super().__init__()
        self.teacher = teacher
        self.guidance = guidance
        self.options = options
        self.student = teacher.student()

    @abstractmethod
    def forward(self, turn: str, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        """The mean loss of one micro-batch for one turn, with a graph to that turn's networks, and what to log."""

    def starting_angle(self, conditioning_timestep: int | None) -> float:
        """The angle at which the student is told that pure noise lies; None means the schedule's end, t_max.

        An earlier timestep, as in DMD2's one-step SDXL (399 of 1000, arXiv 2405.14867), matters to epsilon networks:
        their x0 = (x - sin t z) / cos t multiplies every error by 1 / cos t, which is 15 at the end of Stable
        Diffusion's schedule.
        """
        path = self.student.path
        if conditioning_timestep is None:
            return path.t_max
        if not 0 < conditioning_timestep < path.num_train_timesteps:
            raise ValueError(
                f"method.conditioning_timestep is {conditioning_timestep}; "
                f"it has to lie in 1..{path.num_train_timesteps - 1}"
            )
        return path.angle(torch.tensor([conditioning_timestep])).item()

    def turns(self, step: int) -> tuple[str, ...]:
        """Which networks train at this step, in order; a name may come several times."""
        return self.turn_names

    def networks(self) -> Mapping[str, Sequence[nn.Module]]:
        """The modules that each turn's optimizer updates."""
        return {"student": [self.student]}

    def candidate_times(self) -> list[list[float]]:
        """Falling angles (radians) at which the student may be sampled; the best on held-out samples is exported."""
        return [[self.student.path.t_max]]

    def step_counts(self, times: Sequence[float]) -> tuple[int, ...]:
        """The numbers of steps for which the exported student is meant, each a row of the report."""
        return (len(times),)

    def pictured(self) -> Mapping[str, Denoiser]:
        """Other denoisers worth a line in the sample grid, sampled in one step as the student is."""
        return {}

    def pairs(self) -> tuple[int, int]:
        """How many teacher pairs the method wants made ahead of time (0: none), and the teacher's steps for each."""
        return 0, 0
