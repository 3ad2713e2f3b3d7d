"""Measures all rows of a comparison; rows that are in the cache are read from it."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.metrics.base import ScoredMetric
from eval.pipelines import cache
from eval.pipelines.cache import Result
from eval.pipelines.jobs import Job
from eval.pipelines.measure import measure
from eval.pipelines.settings import Loader, Settings


@dataclass(frozen=True)
class MeasuredRow:
    """A row's results, and whether they come from the cache."""

    job: Job
    result: Result
    from_cache: bool


def measure_rows(
    jobs: list[Job], settings: Settings, folder: Path, machine: dict[str, Any], weights: str | None
) -> list[MeasuredRow]:
    """Measure every row that is not in the cache.

    Args:
        jobs: The rows.
        settings: What all rows share.
        folder: The folder of the cache.
        machine: The machine's description; rows of another machine are measured again.
        weights: Identifies the weights of the feature extractor.
    """
    load = Loader(settings)
    fingerprints = {pipeline: cache.fingerprint(pipeline) for pipeline in {job.folder for job in jobs}}
    rows = []
    for job in jobs:
        name = row_key(job, settings, fingerprints[job.folder], machine, weights)
        result = cache.load(folder, name)
        from_cache = result is not None
        if result is None:
            cache.save(folder, name, measure(job, load, settings))
            result = cache.load(folder, name)
            assert result is not None, "a row that was just written can be read"
        else:
            print(f"{job.name}: measured before, read from {folder / name}", file=sys.stderr)
        rows.append(MeasuredRow(job, result, from_cache))
    return rows


def row_key(job: Job, settings: Settings, fingerprint: str, machine: dict[str, Any], weights: str | None) -> str:
    """The cache key of a row: everything that its measurements, features and scores depend on."""
    scored = [metric for metric in settings.metrics if isinstance(metric, ScoredMetric) and not job.is_reference]
    return cache.key(
        pipeline=fingerprint,
        call=job.call,
        solver=job.fast_solver,
        stream=job.stream,
        seed=settings.seed,
        samples=settings.samples,
        batch_size=settings.batch_size,
        prompts=settings.prompts,
        features=settings.extractor.name,
        weights=weights,
        metrics={metric.key: metric.cache_key() for metric in scored},
        size=settings.size,
        compiled=settings.compiled,
        timing=dataclasses.asdict(settings.timing),
        machine=machine,
    )
