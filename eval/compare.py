"""Compare pipelines, students with their teacher or anybody's: draw, measure, and write one report.

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

from eval.features.extractors import extractor, prompt_judge
from eval.metrics.clip_score import ClipScore
from eval.metrics.diversity import perceptual
from eval.metrics.reference import Reference
from eval.metrics.reference import reference as read_reference
from eval.pipelines import cache
from eval.pipelines.jobs import baseline_of, jobs_of
from eval.pipelines.machine import choose_device, choose_precision, describe, load
from eval.pipelines.measure import PICTURES, Job, Loader, Settings, measure, shrunk
from eval.pipelines.runs import prompts_for, read_run, same, step_counts
from eval.report import write_report
from eval.report.notes import notes
from eval.report.rows import rows
from eval.report.training_log import curves


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
    steps: str | None = None,
    guidance: float | None = None,
    size: int | None = None,
    clip: str | None = None,
    protocol: Path | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Write report.html, report.md, report.json and grid.png into `out`, and return what report.json holds.

    `features`, `reference` and `prompts` stand in for what the runs' distill.json say; reference "teacher" means the
    teacher's own samples from other seeds, prompts "none" means none. Ratios are over the teacher's usual call, or over
    the first row of the run `baseline`, or where there is neither over the very first row. `compiled` adds latencies
    under torch.compile. `steps` ("4" or "1,4") and `guidance` are for pipelines without a distill.json. `size` brings
    images to that many pixels a side before they are judged (`eval.features.resize`), `clip` adds that model's CLIP score
    (`eval.metrics.clip_score`). `protocol` is only told in the report. `device` and `precision` default to a GPU in float16
    where there is one, else the CPU in float32. `command` defaults to the process's own command line. Raises
    ValueError, one sentence, for whatever a user can mend; then nothing is written but rows that were finished before.
    """
    if samples < 2 or batch_size < 1:
        raise ValueError("a comparison needs at least 2 samples, in batches of at least 1; ask for more")
    if not runs:
        raise ValueError("there is nothing to compare; name at least one run")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder for the report with --out")
    if size is not None and size < 1:
        raise ValueError(f"images have at least one pixel a side, not {size}; mend --size")
    pipelines = [read_run(Path(run), step_counts(steps), guidance) for run in runs]
    if (steps is not None or guidance is not None) and all(run.teacher_call is not None for run in pipelines):
        raise ValueError(
            "--steps and --guidance are for pipelines without a distill.json, and all of these say themselves how they "
            "are called; leave them out"
        )
    teacher, on = same(pipelines, "teacher"), choose_device(device)
    source = prompts or same(pipelines, "prompts")
    judged_by = features or same(pipelines, "features") or "clean"
    against = reference or same(pipelines, "reference")
    if teacher is None and against in (None, "teacher"):
        raise ValueError(
            f"{pipelines[0].name} has no teacher to be compared with; name real images with --reference (a folder, an "
            ".npz, or clean-fid:NAME/RES/SPLIT)"
        )
    wanted, known = prompts_for(None if source == "none" else source, samples)
    if clip is not None and wanted is None:
        raise ValueError("a CLIP score is of a picture and its prompt, and there are no prompts; leave out --clip")
    jobs = jobs_of(pipelines, teacher, wanted is not None)
    base = 0 if baseline is None else baseline_of(jobs, Path(baseline))
    settings = Settings(
        samples=samples,
        batch_size=batch_size,
        seed=seed,
        device=on,
        precision=choose_precision(precision, on),
        prompts=wanted,
        extractor=extractor(judged_by, on, inception_weights),
        judge=prompt_judge(judged_by, on),
        distance=perceptual(on),
        compiled=compiled,
        size=size,
        clip=None if clip is None else ClipScore(clip, on),
    )
    dimensions = settings.extractor(torch.zeros(1, 3, 32, 32)).shape[1]
    target = None if against in (None, "teacher") else read_reference(against, settings.extractor, size)
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
    weights = [cache.content(name) for name in (judged_by.partition("=")[2] or None, clip)]
    loader, prints = Loader(settings), {folder: cache.fingerprint(folder) for folder in {job.folder for job in jobs}}
    for job in jobs:
        name = _key(job, settings, prints[job.folder], machine, weights)
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
        "protocol": None if protocol is None else str(protocol),
        "teacher": None if teacher is None else {"path": teacher, "call": jobs[0].call},
        "runs": [{"folder": str(run.folder), "name": run.name, "method": run.method} for run in pipelines],
        "samples": samples,
        "batch_size": batch_size,
        "seed": seed,
        "size": size,
        "features": settings.extractor.name,
        "clip": settings.clip and {"source": clip, "figure": settings.clip.figure(samples)},
        "reference": None if against == "teacher" else against,
        "prompts": {"source": source, "first": settings.prompts and settings.prompts[:PICTURES]},
        "frechet_column": settings.extractor.figure(samples, dimensions)
        + (", to the teacher's own samples" if against in (None, "teacher") else ""),
        "baseline": made[base]["name"],
        "memory_column": "Peak MB (GPU)" if on.type == "cuda" else "Peak MB (process)",
        "machine": {**machine, "load_before": busy},
        "notes": notes(pipelines, settings, dimensions, against, known),
        "curves": curves(pipelines),
        "rows": made,
    }  # fmt: skip
    write_report(report, [shrunk(result.images[:PICTURES]) for result in results], out)
    return report


def _key(job: Job, settings: Settings, fingerprint: str, machine: dict[str, Any], weights: list[str | None]) -> str:
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
        weights=weights,
        size=settings.size,
        lpips=settings.distance is not None,
        compiled=settings.compiled,
        machine=machine,
    )
