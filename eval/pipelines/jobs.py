"""Which rows a comparison has: the teacher's usual call, the teacher with few steps, and every call of every run."""

from pathlib import Path

from eval.pipelines.generate import check_call, pipeline_class
from eval.pipelines.measure import Job
from eval.pipelines.runs import Run, teacher_folder

FEW_STEPS = (1, 2, 4, 8)


def jobs_of(runs: list[Run], teacher: str | None, prompted: bool) -> list[Job]:
    """The rows to measure, in the report's order; without a teacher only the runs' own.

    Raises ValueError where there is no such teacher, or a pipeline does not take its call (weights are not read).
    """
    jobs = [] if teacher is None else _teachers(runs, teacher_folder(teacher))
    names = [run.name for run in runs]
    for run in runs:
        name = run.name if names.count(run.name) == 1 else f"{run.name} ({run.folder})"
        for entry in run.calls:
            often = entry["num_steps"]
            jobs.append(Job(f"{name}, {steps(often)}", run.method, often, run.folder, entry["call"], training=run.cost))
    for job in jobs:
        kind = pipeline_class(job.folder)
        if kind is not None:
            check_call(kind, job.call, prompted)
    return jobs


def steps(count: int) -> str:
    """ "1 step", "2 steps"."""
    return f"{count} step" + "s" * (count != 1)


def _teachers(runs: list[Run], folder: Path) -> list[Job]:
    usual = next(run.teacher_call for run in runs if run.teacher_call is not None)
    often = usual["num_inference_steps"]
    jobs = [Job(f"teacher, {steps(often)}", "teacher", often, folder, usual)]
    # A fixed grid of times belongs to the usual number of steps.
    free = {k: v for k, v in usual.items() if k not in ("timesteps", "sigmas")}
    for few in FEW_STEPS:
        call = {**free, "num_inference_steps": few}
        jobs.append(Job(f"teacher, {steps(few)}", "teacher", few, folder, call, solver=True))
    return jobs


def baseline_of(jobs: list[Job], run: Path) -> int:
    """The number of the first row of the run or pipeline folder `run`. Raises ValueError where it has none."""
    places = {folder.resolve() for folder in (run, run / "pipeline")}
    for number, job in enumerate(jobs):
        if (job.folder.resolve() in places or job.name.startswith(f"{run}, ")) and not job.solver:
            return number
    raise ValueError(f"the baseline {run} is none of the runs compared, nor their teacher; name it among the runs too")
