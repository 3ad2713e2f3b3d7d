"""`Exportable`: how the students of a teacher family become stock pipelines."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from diffusers import DiffusionPipeline

from teachers.core.contract import Contract
from teachers.core.denoiser import Denoiser

ExportSchedule = Literal["native", "bent"]


class Exportable(Contract, ABC):
    """The part of `Teacher` that exports students; `Teacher` describes the attributes."""

    export_schedule: ExportSchedule = "native"

    @abstractmethod
    def pipeline(self, student: Denoiser, times: Sequence[float]) -> DiffusionPipeline:
        """Build a stock pipeline that samples `student`.

        Args:
            student: The student.
            times: Decreasing angles in radians, one network call each.

        Returns:
            A diffusers pipeline that needs no code of this project.

        Raises:
            ValueError: If the times are invalid for the student's path.
        """

    @abstractmethod
    def calls(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        """The call arguments of an exported pipeline.

        Args:
            num_steps: Number of sampling steps.
            times: The angles of these steps, in radians.

        Returns:
            Keyword arguments for the pipeline's `__call__`.
        """

    def native_times(self, student: Denoiser, times: Sequence[float]) -> list[float]:
        """The angles of an export with `export_schedule`: at whole native timesteps, or `times` themselves.

        Args:
            student: The student.
            times: Decreasing angles in radians.

        Returns:
            The angles that are nearest to `times` on the native schedule; `times` if the pipeline's schedule is
            continuous, if it cannot sample there, or with `export_schedule` "bent".
        """
        return list(times)

    def native_candidates(self, student: Denoiser, candidates: Sequence[Sequence[float]]) -> list[list[float]]:
        """The different schedules of an export with `export_schedule` that are nearest to a method's candidates.

        Args:
            student: The student.
            candidates: Schedules, each of decreasing angles in radians.

        Returns:
            `native_times` of each candidate, without repetitions.
        """
        found = [self.native_times(student, times) for times in candidates]
        return [times for i, times in enumerate(found) if times not in found[:i]]

    def native_timesteps(self, student: Denoiser, times: Sequence[float]) -> list[int] | None:
        """The whole native timesteps that an exported pipeline passes to its network.

        Args:
            student: The student.
            times: Decreasing angles in radians.

        Returns:
            One timestep for each angle; None if the pipeline has another schedule.
        """
        return None

    def timesteps_call(self, student: Denoiser, times: Sequence[float]) -> dict[str, Any]:
        """The call arguments that select a student's native timesteps, in addition to `calls`.

        Args:
            student: The student.
            times: Decreasing angles in radians.

        Returns:
            Keyword arguments; empty if the number of steps alone selects them.
        """
        return {}

    def exportable_times(self, times: list[float]) -> list[float]:
        """The nearest angles that an exported pipeline can sample.

        Args:
            times: Decreasing angles in radians.

        Returns:
            As many decreasing angles in radians.
        """
        return times

    def check_exportable(self, times: Sequence[float]) -> None:
        """Check that an exported pipeline can sample at some angles; runs check it before training.

        Args:
            times: Decreasing angles in radians.

        Raises:
            ValueError: If it cannot; by default it can at all angles.
        """
        return

    def save_lora(self, student: Denoiser, times: Sequence[float], folder: Path) -> bool:
        """Save a student that is a LoRA adapter, for `load_lora_weights` of the stock pipeline.

        Args:
            student: A student whose network is `Adapted`.
            times: Decreasing angles in radians, at which the pipeline samples it.
            folder: Receives pytorch_lora_weights.safetensors.

        Returns:
            False if the stock pipeline does not support LoRA; nothing is written then.
        """
        return False

    def lora_call(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        """The call arguments of the stock pipeline with the LoRA file and the student's scheduler; see `calls`."""
        return self.calls(num_steps, times)
