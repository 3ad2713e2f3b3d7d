"""Distiller: the contract of a method.

A method is one class: its options, its networks, the order in which they train, and a loss for each turn. It never sees
an optimizer, an accelerator or a pipeline. Register it under the entry-point group `distill.distillers`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distill.data.batch import Batch
from teachers.core.denoiser import Denoiser
from teachers.core.teacher import Teacher

Logs = dict[str, Tensor]  # scalars, detached, averaged over the log interval


class Distiller(nn.Module, ABC):
    """Owns the student and the auxiliary networks as submodules; the teacher is frozen and is no submodule.

    `Options` is a dataclass of the keys that `method:` takes in a recipe. `PHASES` are the keys of `optimizers:`.
    """

    Options: ClassVar[type[Any]]
    PHASES: ClassVar[tuple[str, ...]] = ("student",)

    student: Denoiser

    def __init__(self, teacher: Teacher, guidance: float, options: Any, student: Denoiser | None = None) -> None:
        """`student` is given where methods are composed and share one; otherwise it is a copy of the teacher."""
        super().__init__()
        self.teacher = teacher
        self.guidance = guidance
        self.options = options
        self.student = teacher.student() if student is None else student

    @classmethod
    def needs_latents(cls, options: Any) -> bool:
        """Whether the method learns from images (real, or the teacher's) and not from prompts alone."""
        return False

    @classmethod
    def pairs(cls, options: Any) -> tuple[int, int]:
        """How many teacher pairs the method wants made ahead of time (0: none), and the teacher's steps for each."""
        return 0, 0

    @abstractmethod
    def forward(self, phase: str, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        """The mean loss of one micro-batch for one turn, with a graph to that turn's networks, and what to log."""

    def angles(self, timesteps: Sequence[int]) -> list[float]:
        """The falling angles at which a student is told native `timesteps`; none given means pure noise at t_max.

        The first need not be the last of the schedule: pure noise may be declared an earlier timestep, as DMD2's
        one-step SDXL does (399 of 1000, arXiv 2405.14867). That matters to epsilon networks, whose
        x0 = (x - sin t z) / cos t multiplies every error by 1 / cos t, 15 at the end of Stable Diffusion's schedule.
        """
        path = self.student.path
        if not timesteps:
            return [path.t_max]
        last = path.num_train_timesteps - 1
        if any(b >= a for a, b in pairwise(timesteps)) or timesteps[0] > last or timesteps[-1] < 1:
            raise ValueError(f"method.timesteps are {list(timesteps)}; they have to fall and to lie in 1..{last}")
        return path.angle(torch.tensor(timesteps)).tolist()

    def phases(self, step: int) -> tuple[str, ...]:
        """Which networks train at this step, in order; a name may come several times.

        A function of `step` alone: it is asked several times, and ahead of the step.
        """
        return self.PHASES

    def networks(self) -> Mapping[str, Sequence[nn.Module]]:
        """The modules that each turn's optimizer updates."""
        return {"student": [self.student]}

    def candidate_times(self) -> list[list[float]]:
        """Falling angles (radians) at which the student may be sampled; the best on held-out samples is exported."""
        return [[self.student.path.t_max]]

    def step_counts(self, times: Sequence[float]) -> tuple[int, ...]:
        """The numbers of steps for which the exported student is meant, each a row of the report."""
        return (len(times),)

    def preview_models(self) -> Mapping[str, Denoiser]:
        """Other denoisers worth a line in the sample grid, sampled in one step as the student is."""
        return {}

    def notes(self) -> Sequence[str]:
        """Choices that the method made by itself, a sentence each, printed when a run starts."""
        return ()
