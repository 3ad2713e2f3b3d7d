"""The rows of a comparison: the teacher's usual call, the teacher with few steps, and every call of every run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.pipelines.folders import teacher_folder
from eval.pipelines.runs import Run
from eval.pipelines.shared_settings import tuned_teacher_folder
from eval.pipelines.signatures import argument, check_call, pipeline_class
from teachers.loading.registry import family_of_class
from teachers.support.text import counted

REFERENCE_NAME = "the teacher's reference samples"


@dataclass(frozen=True)
class Job:
    """One row to measure.

    Attributes:
        name: The row's name.
        method: The distillation method, or "teacher".
        num_steps: Denoising steps of the call.
        folder: The pipeline's folder.
        call: The call's arguments apart from prompts and noise.
        fast_solver: Whether the pipeline's solver is replaced by a modern one for few steps.
        is_reference: Whether the samples are the teacher's own reference samples, which have other noise than the rows.
        training: The cost of training.
    """

    name: str
    method: str
    num_steps: int
    folder: Path
    call: dict[str, Any]
    fast_solver: bool = False
    is_reference: bool = False
    training: dict[str, Any] | None = None

    @property
    def stream(self) -> str:
        """The name of the random stream of the samples' noise."""
        return "reference" if self.is_reference else "samples"


def jobs_of(
    runs: list[Run], teacher: str | None, prompted: bool, few_steps: Sequence[int], allow_pickle: bool = False
) -> list[Job]:
    """The rows to measure, in the order of the report. No weights are read.

    Args:
        runs: The runs.
        teacher: Their teacher, or None: then there are only the rows of the runs.
        prompted: Whether the samples have prompts.
        few_steps: Numbers of steps that the teacher is also evaluated at.
        allow_pickle: Whether pickled weights of the teacher may be downloaded.

    Raises:
        ValueError: If the teacher does not exist, or a pipeline does not accept its call.
    """
    jobs = []
    if teacher is not None:
        tuned = any(run.teacher_loras for run in runs)
        folder = tuned_teacher_folder(runs, allow_pickle) if tuned else teacher_folder(teacher, allow_pickle)
        jobs = _teacher_jobs(runs, folder, few_steps)
    names = [run.name for run in runs]
    for run in runs:
        name = run.name if names.count(run.name) == 1 else f"{run.name} ({run.folder})"
        for entry in run.calls:
            num_steps = entry["num_steps"]
            full_name = f"{name}, {steps_text(num_steps)}"
            jobs.append(Job(full_name, run.method, num_steps, run.folder, entry["call"], training=run.cost))
    for job in jobs:
        check_call(pipeline_class(job.folder), job.call, prompted)
    return jobs


def steps_text(count: int) -> str:
    """The number of steps in words, such as "1 step" or "2 steps"."""
    return counted(count, "step")


def _teacher_jobs(runs: list[Run], folder: Path, few_steps: Sequence[int]) -> list[Job]:
    run = next(run for run in runs if run.teacher_call is not None)
    usual, usual_steps = run.teacher_call or {}, run.teacher_steps
    jobs = [Job(f"teacher, {steps_text(usual_steps)}", "teacher", usual_steps, folder, usual)]
    name = argument(pipeline_class(folder), "num_inference_steps")
    if name is None:  # its number of steps is fixed
        return jobs
    # A fixed grid of timesteps fits the usual number of steps only.
    without_grid = {k: v for k, v in usual.items() if k not in ("timesteps", "sigmas")}
    family = family_of_class(pipeline_class(folder))
    fewest = 1 if family is None else family.fewest_steps
    for count in (count for count in few_steps if count >= fewest):
        call = {**without_grid, name: count}
        jobs.append(Job(f"teacher, {steps_text(count)}", "teacher", count, folder, call, fast_solver=True))
    return jobs


def baseline_of(jobs: list[Job], run: Path) -> int:
    """The index of the first row of a run or pipeline folder. Raises ValueError if it has no row."""
    folders = {folder.resolve() for folder in (run, run / "pipeline")}
    for index, job in enumerate(jobs):
        if (job.folder.resolve() in folders or job.name.startswith(f"{run}, ")) and not job.fast_solver:
            return index
    raise ValueError(f"--baseline must be one of the compared runs or their teacher, got {run}")
