"""Distiller: the base class of every distillation method.

A method is one class: its options, its networks, the order in which they train, and a loss for each phase. It never
sees an optimizer, an accelerator or a pipeline. Register it under the entry-point group `distill.distillers`.
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

Logs = dict[str, Tensor]  # detached scalars, averaged over the log interval


class Distiller(nn.Module, ABC):
    """A distillation method: the student, the auxiliary networks and their losses.

    The student and the auxiliary networks are submodules. The teacher is frozen and is not a submodule.

    Args:
        teacher: The loaded teacher.
        guidance: Classifier-free guidance scale of the teacher, in diffusers' convention (1.0: none).
        options: An instance of `Options`.
        student: The student, if several methods share one; by default a trainable copy of the teacher's network.

    Attributes:
        Options: A dataclass of the keys that `method:` accepts in a recipe. If it inherits from
            `distill.config.typed.Checked`, its fields carry bounds and help texts, and its `check` method tests how
            options depend on each other. A plain dataclass also works.
        PHASES: Names of the phases. Each phase has one optimizer; the names are the keys of `optimizers:` in a recipe.
        student: The network that is distilled.
    """

    Options: ClassVar[type[Any]]
    PHASES: ClassVar[tuple[str, ...]] = ("student",)

    student: Denoiser

    def __init__(self, teacher: Teacher, guidance: float, options: Any, student: Denoiser | None = None) -> None:
        super().__init__()
        self.teacher = teacher
        self.guidance = guidance
        self.options = options
        teacher.fix_guidance(guidance)
        self.student = teacher.student() if student is None else student

    @classmethod
    def needs_latents(cls, options: Any) -> bool:
        """Whether the method learns from latents of real samples or of the teacher's samples, not from prompts alone.

        Args:
            options: An instance of `Options`.
        """
        return False

    @classmethod
    def pairs(cls, options: Any) -> tuple[int, int]:
        """The teacher pairs (noise and the teacher's sample of it) that the method needs before training.

        Args:
            options: An instance of `Options`.

        Returns:
            The number of pairs (0: none), and the number of the teacher's ODE steps for each pair.
        """
        return 0, 0

    @classmethod
    def check_run(cls, options: Any, guidance: float) -> None:
        """Check what `Options` alone cannot: the teacher's guidance, and files that the method needs.

        It is called before the teacher is loaded and the data is encoded. Override it to find early whatever would stop
        the method later; the default accepts everything.

        Args:
            options: An instance of `Options`.
            guidance: Classifier-free guidance scale of the teacher.

        Raises:
            ValueError: If the method cannot run.
        """
        return

    @abstractmethod
    def forward(self, phase: str, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        """The loss of one micro-batch.

        Args:
            phase: One of `PHASES`.
            batch: Conditions, random numbers, and latents if `needs_latents` returns True.
            step: Number of completed training steps.

        Returns:
            The mean loss, a scalar with gradients to the networks of `phase`, and the values to log.
        """

    def angles(self, timesteps: Sequence[int]) -> list[float]:
        """The TrigFlow angles of the student's sampling steps.

        The first timestep may be lower than the end of the schedule: pure noise is then passed to the network with an
        earlier timestep, as in DMD2's one-step SDXL (399 of 1000, arXiv 2405.14867). This matters for epsilon
        networks, whose x0 = (x - sin t z) / cos t multiplies every error by 1 / cos t, which is 15 at the end of
        Stable Diffusion's schedule.

        Args:
            timesteps: Native timesteps in decreasing order; empty for one step at `t_max`.

        Returns:
            The angles in radians, one for each timestep, in decreasing order.

        Raises:
            ValueError: If the timesteps do not decrease or are outside the teacher's schedule.
        """
        path = self.student.path
        if not timesteps:
            return [path.t_max]
        last = path.last_timestep
        if any(b >= a for a, b in pairwise(timesteps)) or timesteps[0] > last or timesteps[-1] < 1:
            raise ValueError(f"method.timesteps must decrease and be from 1 to {last}, got {list(timesteps)}")
        return self.teacher.exportable_times(path.angle(torch.tensor(timesteps)).tolist())

    def phases(self, step: int) -> tuple[str, ...]:
        """The phases of one training step, in order; a phase may occur several times.

        The result must depend on `step` only: the training loop calls this method several times for each step, also
        in advance.

        Args:
            step: Number of completed training steps.

        Returns:
            Names of `PHASES`.
        """
        return self.PHASES

    def networks(self) -> Mapping[str, Sequence[nn.Module]]:
        """The modules that the optimizer of each phase updates.

        Returns:
            Submodules of this one for each name in `PHASES`. Together they have every trainable parameter.
        """
        return {"student": [self.student]}

    def averages(self) -> Sequence[tuple[Denoiser, float]]:
        """Networks whose weights follow the student's, and their decays.

        After each step the training loop sets network <- decay network + (1 - decay) student. They are submodules with
        the student's parameters: frozen copies that the losses read, or networks that also train in a phase. The
        average that is evaluated and exported is the loop's own (`train.ema`).

        Returns:
            Pairs of a network and its decay per training step, from 0 to 1.
        """
        return ()

    def sampling_schedules(self) -> list[list[float]]:
        """Candidate schedules of the student's sampling steps.

        The export uses the schedule with the smallest held-out Frechet distance.

        Returns:
            At least one schedule, each a list of decreasing angles in radians, one for each step.
        """
        return [[self.student.path.t_max]]

    def step_counts(self, times: Sequence[float]) -> tuple[int, ...]:
        """The numbers of sampling steps that the exported student supports.

        Args:
            times: Its schedule, decreasing angles in radians; a sample of n steps uses the first n.

        Returns:
            Numbers from 1 to the length of `times`.
        """
        return (len(times),)

    def preview_models(self) -> Mapping[str, Denoiser]:
        """Additional denoisers for the sample grid, by name; each is sampled in one step."""
        return {}

    def startup_messages(self) -> Sequence[str]:
        """Messages about automatic choices of the method, printed when a run starts."""
        return ()
