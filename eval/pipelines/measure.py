"""Measures one row of a comparison: generates its samples, scores them, and times the pipeline."""

import datetime
import functools
import statistics as median_of
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from eval.metrics.base import GroupMetric, SampleMetric
from eval.metrics.diversity import prompt_groups
from eval.metrics.fid import statistics
from eval.metrics.guard import score, score_groups, working
from eval.pipelines.cache import Result
from eval.pipelines.energy import Energy
from eval.pipelines.generate import arguments, largest_batch, own_lists, seeded
from eval.pipelines.jobs import Job
from eval.pipelines.latency import PeakMemory, latency, parts, throughput, timed
from eval.pipelines.networks import Pipeline, count_evaluations, network
from eval.pipelines.real_time import times_real_time
from eval.pipelines.settings import Loader, Settings
from teachers.support.errors import reading
from teachers.support.text import printable

KEPT_IMAGES = 64  # samples of each row, for metrics that compare them with the teacher's
KEPT_PIXELS = 2**26  # of each channel at most, except for the samples that the report shows
SHOWN_IMAGES = 10  # of each row, at once in the report
GALLERY_IMAGES, GALLERY_PIXELS = 24, 2**24  # of each row at their own size beside the report: at least SHOWN_IMAGES


class _Calls:
    """The calls of one row's pipeline."""

    def __init__(self, pipe: Pipeline, job: Job, settings: Settings) -> None:
        self.pipe, self.job, self.settings = pipe, job, settings

    def prompts(self, indices: Sequence[int]) -> list[str] | None:
        prompts = self.settings.prompts
        return None if prompts is None else [prompts[i % self.settings.samples] for i in indices]

    def prepare(self, indices: Sequence[int]) -> dict[str, Any]:
        """The arguments that generate the samples `indices`."""
        with reading(self.job.folder):
            prompts, settings, sources = self.prompts(indices), self.settings, self.settings.sources
            images = None if sources is None else sources.read([i % settings.samples for i in indices])
            return arguments(self.pipe, self.job.call, prompts, indices, settings.seed, self.job.stream, images)

    def run(self, ready: dict[str, Any]) -> Any:
        with reading(self.job.folder), torch.inference_mode():
            return self.pipe(**own_lists(ready))

    def seeded(self, indices: Sequence[int]) -> AbstractContextManager[None]:
        """A context in which the global random generators depend on the samples `indices` only."""
        return seeded(indices, self.settings.seed, self.job.stream)

    def batch_of(self, count: int) -> Callable[[], Any]:
        """A function that generates the first `count` samples."""
        return functools.partial(self.run, self.prepare(range(count)))


def measure(job: Job, load: Loader, settings: Settings) -> Result:
    """Measure one row.

    Throughput comes from the batches that generate the samples, latency from calls with one sample.

    Args:
        job: The row.
        load: Loads pipelines.
        settings: What all rows share.

    Raises:
        ValueError: If the samples are broken; the message begins with the row's name.
    """
    calls = _Calls(load(job), job, settings)
    size = largest_batch(calls.pipe, settings.batch_size)
    first = None if settings.medium.name == "image" else _first_call(calls)
    batches = [list(range(i, min(i + size, settings.samples))) for i in range(0, settings.samples, size)]
    if len(batches) < 3:  # otherwise the first batch is the warm-up and is not timed
        calls.run(calls.prepare(batches[0]))
    samples = _Samples()
    with (
        PeakMemory(settings.device) as memory,
        Energy(settings.device) as energy,
        count_evaluations(calls.pipe) as count,
    ):
        _generate(samples, calls, batches)
    features = torch.cat(samples.features)
    try:
        mean, covariance = statistics(features)
    except ValueError as error:
        raise ValueError(f"{job.name}: {error}") from error
    figures: dict[str, Any] = {
        "solver": load.solver,
        "measured": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "nfe": count.evaluations / settings.samples,
        "images_per_second": median_of.median(samples.speeds),
        "peak_memory_mb": memory.megabytes,
        "joules_per_image": None if energy.joules is None else energy.joules / settings.samples,
        "load_seconds": load.seconds,
        "samples": settings.samples,
    }
    if first is not None:
        figures["first_sample_seconds"] = load.seconds + first
    used = {metric.key for metric in working(settings.metrics)}  # one that failed has the scores of some batches only
    scores = {key: torch.cat(batch_scores) for key, batch_scores in samples.scores.items() if key in used}
    if not job.is_reference:
        scores |= _score_groups(calls)
        figures |= _latencies(calls, load)
    gallery = torch.cat(samples.gallery) if samples.gallery else None
    return Result(figures, features, mean, covariance, torch.cat(samples.images), scores, gallery)


@dataclass
class _Samples:
    """Features, scores and the first images of a row's samples, one entry per batch."""

    features: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    gallery: list[Tensor] = field(default_factory=list)
    scores: dict[str, list[Tensor]] = field(default_factory=dict)
    speeds: list[float] = field(default_factory=list)  # images per second


def _generate(samples: _Samples, calls: _Calls, batches: list[list[int]]) -> None:
    """Generate and score all samples of a row."""
    settings, job = calls.settings, calls.job
    metrics = [] if job.is_reference else [m for m in settings.metrics if isinstance(m, SampleMetric)]
    with tqdm(
        total=settings.samples,
        desc=printable(job.name),
        unit="img" if settings.medium.name == "image" else settings.medium.noun,
    ) as bar:
        for number, indices in enumerate(batches):
            ready = calls.prepare(indices)
            with calls.seeded(indices):
                output, seconds = timed(functools.partial(calls.run, ready), settings.device)
            received = settings.medium.received(output)
            images = settings.resized(received)
            if len(batches) < 3 or (number > 0 and len(indices) == len(batches[0])):
                samples.speeds.append(len(indices) / seconds)
            samples.features.append(settings.extractor(images).cpu())
            for metric in working(metrics):
                scores = score(metric, images, calls.prompts(indices))
                if scores is not None:
                    samples.scores.setdefault(metric.key, []).append(scores)
            gallery = gallery_size(received)
            limit = max(gallery, min(KEPT_IMAGES, KEPT_PIXELS // images[0, 0].numel()))
            if indices[0] < limit:
                samples.images.append(images[: limit - indices[0]].cpu())
            if indices[0] < gallery and received is not images:
                samples.gallery.append(received[: gallery - indices[0]].cpu())
            bar.update(len(indices))


def gallery_size(samples: Tensor) -> int:
    """How many samples (B, ...) of this size the report keeps of each row."""
    return max(SHOWN_IMAGES, min(GALLERY_IMAGES, GALLERY_PIXELS // samples[0, 0].numel()))


def _score_groups(calls: _Calls) -> dict[str, Tensor]:
    """Generate several samples of each of a few prompts and score them, if a metric needs them."""
    settings = calls.settings
    metrics = [metric for metric in working(settings.metrics) if isinstance(metric, GroupMetric)]
    if not metrics:
        return {}
    prompts, groups = prompt_groups(settings.prompts, settings.samples)
    batches, size = [], largest_batch(calls.pipe, settings.batch_size)
    for first in range(0, len(groups), size):
        indices = list(range(first, min(first + size, len(groups))))
        batch_prompts = None if prompts is None else [prompts[i] for i in indices]
        images = None
        if settings.sources is not None and batch_prompts is not None:
            images = settings.sources.read(settings.sources.first(batch_prompts))
        ready = arguments(calls.pipe, calls.job.call, batch_prompts, indices, settings.seed, "diversity", images)
        with seeded(indices, settings.seed, "diversity"):
            batches.append(settings.received(calls.run(ready)).cpu())
    images = torch.cat(batches)
    found = {metric.key: score_groups(metric, images, groups) for metric in metrics}
    return {key: scores for key, scores in found.items() if scores is not None}


def _first_call(calls: _Calls) -> float:
    """Seconds of a call with one sample, the first of the row."""
    ready = calls.prepare([0])
    with calls.seeded([0]):
        return timed(functools.partial(calls.run, ready), calls.settings.device)[1]


def _latencies(calls: _Calls, load: Loader) -> dict[str, Any]:
    """Latency of one sample, its parts, and throughput at several batch sizes."""
    settings, device = calls.settings, calls.settings.device
    # A user who generates one image passes neither noise nor a generator, so their cost is not part of the latency.
    single = {k: v for k, v in calls.prepare([0]).items() if k not in ("latents", "generator")}
    call = functools.partial(calls.run, single)
    times = latency(call, device, settings.timing)
    figures: dict[str, Any] = {
        "latency_ms": times.median,
        "latency_ms_p5": times.p5,
        "latency_ms_p95": times.p95,
        "latency_repeats": times.repeats,
        **parts(calls.pipe, call, device, settings.timing.part_repeats),
        "throughput": throughput(calls.batch_of, min(settings.batch_size, settings.samples), device),
        "latency_compiled_ms": None,
    }
    if (factor := times_real_time(settings.medium, times.median / 1000)) is not None:
        figures["times_real_time"] = factor
    if settings.compiled:
        network(calls.pipe).compile()
        figures["latency_compiled_ms"] = latency(call, device, settings.timing).median
        load.unload()
    return figures
