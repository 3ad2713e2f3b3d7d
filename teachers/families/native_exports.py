"""`NativeExports`: exports of variance-preserving students on the teacher's own noise schedule."""

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from teachers.core.denoiser import Denoiser
from teachers.core.few_step import consistency_scheduler, lcm_timesteps
from teachers.core.native_schedule import (
    NativeSteps,
    anchors,
    half_step,
    is_native,
    native_scheduler,
    native_steps,
    native_times,
)
from teachers.core.teacher import Teacher
from teachers.core.time_embedding import bake_timesteps
from teachers.core.trigflow import Flow, VariancePreserving


class NativeExports(Teacher):
    """A family whose variance-preserving students are exported with `LCMScheduler`, on the native or a bent table."""

    @abstractmethod
    def exported_class(self) -> type[Any]:
        """The class of exported pipelines."""

    @abstractmethod
    def teacher_scheduler(self) -> Any:
        """The teacher's own scheduler."""

    def takes_timesteps(self) -> bool:
        """Whether the call of exported pipelines takes `timesteps`."""
        return "timesteps" in inspect.signature(self.exported_class().__call__).parameters

    def native_times(self, student: Denoiser, times: Sequence[float]) -> list[float]:
        if self.export_schedule != "native" or not isinstance(student.path, VariancePreserving):
            return list(times)
        try:
            steps = native_steps(student, times)
        except ValueError:
            return list(times)
        if steps.regular or self.takes_timesteps():
            return steps.times
        by_number = half_step(student, times) if len(times) == 2 else None
        return list(times) if by_number is None else by_number

    def native_candidates(self, student: Denoiser, candidates: Sequence[Sequence[float]]) -> list[list[float]]:
        found = super().native_candidates(student, candidates)
        if self.export_schedule == "native" and isinstance(student.path, VariancePreserving) and len(found[0]) == 2:
            by_number = half_step(student, found[0])
            found += [by_number] if by_number is not None and by_number not in found else []
        return found

    def steps_at(self, student: Denoiser, times: Sequence[float]) -> NativeSteps | None:
        """The native steps of an export at `times`; None if its table is bent, or its schedule is continuous."""
        if self.export_schedule != "native" or not is_native(student, times):
            return None
        steps = native_steps(student, times)
        return steps if steps.regular or self.takes_timesteps() else None

    def native_timesteps(self, student: Denoiser, times: Sequence[float]) -> list[int] | None:
        steps = self.steps_at(student, times)
        return None if steps is None else steps.timesteps

    def timesteps_call(self, student: Denoiser, times: Sequence[float]) -> dict[str, Any]:
        steps = self.steps_at(student, times)
        return {} if steps is None or steps.regular else {"timesteps": steps.timesteps}

    def consistency_export(self, student: Denoiser, times: Sequence[float]) -> tuple[Any, Tensor]:
        """The scheduler of a variance-preserving student, and the timesteps (N,) of its angles."""
        steps = self.steps_at(student, times)
        if steps is None:
            return consistency_scheduler(student, times), torch.tensor(lcm_timesteps(student.path, len(times)))
        own = getattr(self.teacher_scheduler(), "betas", None)
        return native_scheduler(student, steps, own), torch.tensor(steps.timesteps)

    def exact_points(
        self, student: Denoiser, times: Sequence[float], timesteps: Tensor
    ) -> tuple[Sequence[float], Tensor]:
        """The angles and timesteps at which an exported network computes exactly what the student does."""
        steps = self.steps_at(student, times)
        if steps is None:
            return times, timesteps
        points = anchors(student, steps)
        return native_times(student, points), torch.tensor(points)

    def exported_network(self, student: Denoiser, times: Sequence[float], timesteps: Tensor) -> nn.Module:
        """The network of an export whose scheduler passes `timesteps` (N,) at `times`."""
        native = self.steps_at(student, times) is not None
        whole = native or (self.export_schedule == "native" and isinstance(student.path, Flow))
        return bake_timesteps(student, *self.exact_points(student, times, timesteps), whole)
