"""Measures all rows of a comparison; rows that are in the cache are read from it."""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.metrics.base import ScoredMetric
from eval.metrics.guard import guarded, working
from eval.pipelines import cache
from eval.pipelines.cache import Result
from eval.pipelines.jobs import Job
from eval.pipelines.measure import measure
from eval.pipelines.settings import Loader, Settings
from teachers.loading.contents import pipeline_contents
from teachers.loading.registry import family_of, installed
from teachers.support.errors import reads
from teachers.support.keys import code, key


@dataclass(frozen=True)
class MeasuredRow:
    """A row's results, and whether they come from the cache."""

    job: Job
    result: Result
    from_cache: bool


def measure_rows(jobs: list[Job], settings: Settings, folder: Path, machine: dict[str, Any]) -> list[MeasuredRow]:
    """Measure every row that is not in the cache.

    Args:
        jobs: The rows.
        settings: What all rows share.
        folder: The folder of the cache.
        machine: The machine's description; rows of another machine are measured again.
    """
    load = Loader(settings)
    pipelines = {pipeline: pipeline_key(pipeline) for pipeline in {job.folder for job in jobs}}
    rows = []
    for job in jobs:
        name = row_key(job, settings, pipelines[job.folder], machine)
        result = cache.load(folder, name)
        from_cache = result is not None
        if result is None:
            measured = measure(job, load, settings)
            name = row_key(job, settings, pipelines[job.folder], machine)  # without metrics that failed meanwhile
            cache.save(folder, name, measured)
            result = cache.load(folder, name)
            assert result is not None, "a row that was just written can be read"
        else:
            print(f"{job.name}: measured before, read from {folder / name}", file=sys.stderr)
        rows.append(MeasuredRow(job, result, from_cache))
    return rows


@reads
def pipeline_key(folder: Path) -> str:
    """A key of the contents of a pipeline's folder and of the family that takes it, without card and distill.json."""
    try:
        family = installed()[family_of(str(folder))]
    except ValueError:  # a pipeline that no family takes is judged with diffusers alone
        return key(pipeline_contents(str(folder)))
    return key(pipeline_contents(str(folder)), code(family, *family.pipelines))


def _metric_key(metric: ScoredMetric) -> list[Any]:
    entries = metric.cache_key()
    key(entries)  # it must have a content
    return entries


def row_key(job: Job, settings: Settings, pipeline: str, machine: dict[str, Any]) -> str:
    """The cache key of a row: everything that its measurements, features and scores depend on."""
    scored = [metric for metric in working(settings.metrics) if isinstance(metric, ScoredMetric)]
    keys = {metric.key: guarded(metric, functools.partial(_metric_key, metric)) for metric in scored}
    inputs = {
        "pipeline": pipeline,
        "call": job.call,
        "solver": job.fast_solver,
        "stream": job.stream,
        "seed": settings.seed,
        "samples": settings.samples,
        "batch_size": settings.batch_size,
        "prompts": settings.prompts,
        "features": (settings.extractor.name, settings.extractor.weights),
        "metrics": {} if job.is_reference else {metric.key: keys[metric.key] for metric in working(scored)},
        "size": settings.size,
        "precision": settings.precision,
        "device": settings.device.type,
        "compiled": settings.compiled,
        "timing": settings.timing,
        "medium": settings.medium,
        "machine": machine,
    }
    if settings.sources is not None:
        inputs["sources"] = settings.sources.content()
    return key(inputs, code("eval.pipelines.measure", "eval.features.media_extractors"))[:24]
