"""Measuring one row of the comparison: draw its samples, time them, and keep what the report needs."""

import datetime
import functools
import statistics as median_of
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from eval.features.extractors import Extractor
from eval.features.resize import center_crop_resize
from eval.metrics.clip_score import ClipScore
from eval.metrics.diversity import Distance, pairwise, plan
from eval.metrics.fid import statistics
from eval.pipelines.cache import Result
from eval.pipelines.energy import Energy
from eval.pipelines.generate import Pipeline, arguments, counted, images_of, load_pipeline, network, use_modern_solver
from eval.pipelines.latency import PeakMemory, latency, parts, throughput, timed
from eval.pipelines.machine import PRECISIONS

KEPT = 64  # how many of a row's first samples are kept, to be compared with the teacher's
PIXELS = 2**26  # but no more pixels than these in all, and never fewer than the report shows
PICTURES = 10  # how many of them the report shows
LARGEST = 192  # pixels; larger pictures are shown smaller


@dataclass(frozen=True)
class Job:
    """One row to measure: which pipeline, called how. `stream` tells a reference's seeds from those of the rows."""

    name: str
    method: str
    num_steps: int
    folder: Path
    call: dict[str, Any]
    solver: bool = False  # sampled with a modern few-step solver instead of the pipeline's own
    stream: str = "samples"
    training: dict[str, Any] | None = None


@dataclass(frozen=True)
class Settings:
    """What all rows of one comparison share. `prompts` is one prompt a sample, or None."""

    samples: int
    batch_size: int
    seed: int
    device: torch.device
    precision: str
    prompts: list[str] | None
    extractor: Extractor
    judge: Callable[[Tensor, list[str]], Tensor] | None
    distance: Distance | None = None  # LPIPS, where its weights are at hand
    compiled: bool = False
    size: int | None = None  # pixels a side that images are brought to before anything judges them
    clip: ClipScore | None = None

    def images(self, output: Any) -> Tensor:
        """What a pipeline returned, as it is judged."""
        return center_crop_resize(images_of(output), self.size)


@dataclass
class Loader:
    """The pipeline in use: rows that share one follow each other, so one at a time is held."""

    settings: Settings
    _held: tuple[Path, bool] | None = None
    _pipe: Pipeline | None = field(default=None, repr=False)
    solver: str | None = None
    seconds: float = 0.0  # what loading took

    def __call__(self, job: Job) -> Pipeline:
        if self._held != (job.folder, job.solver):
            self.forget()
            dtype = PRECISIONS[self.settings.precision]
            self._pipe, self.seconds = timed(
                lambda: load_pipeline(job.folder, self.settings.device, dtype), self.settings.device
            )
            self.solver = use_modern_solver(self._pipe) if job.solver else None
            self._held = (job.folder, job.solver)
        assert self._pipe is not None
        return self._pipe

    def forget(self) -> None:
        """Free the pipeline, before another is loaded or because this one was changed."""
        self._held, self._pipe, self.solver = None, None, None


def measure(job: Job, load: Loader, settings: Settings) -> Result:
    """Draw `settings.samples` images as the job says; throughput comes from those batches, latency from calls of one.

    Raises ValueError, naming the row, where the images are broken.
    """
    pipe, device, size = load(job), settings.device, settings.batch_size
    features, verdicts, scores, speeds, pictures = [], [], [], [], []

    def prepared(indices: list[int]) -> tuple[list[str] | None, dict[str, Any]]:
        prompts = None if settings.prompts is None else [settings.prompts[i % settings.samples] for i in indices]
        return prompts, arguments(pipe, job.call, prompts, indices, settings.seed, job.stream)

    def batch_of(count: int) -> Callable[[], Any]:
        return functools.partial(_call, pipe, prepared(list(range(count)))[1])

    batches = [list(range(i, min(i + size, settings.samples))) for i in range(0, settings.samples, size)]
    if len(batches) < 3:  # else the first batch is the warm-up, and is not timed
        _call(pipe, prepared(batches[0])[1])
    with (
        PeakMemory(device) as memory,
        Energy(device) as energy,
        counted(pipe) as count,
        tqdm(total=settings.samples, desc=job.name, unit="img") as bar,
    ):
        for number, indices in enumerate(batches):
            prompts, ready = prepared(indices)
            output, seconds = timed(functools.partial(_call, pipe, ready), device)
            images = settings.images(output)
            if len(batches) < 3 or (number > 0 and len(indices) == size):
                speeds.append(len(indices) / seconds)
            features.append(settings.extractor(images).cpu())
            if settings.judge is not None and prompts is not None:
                verdicts.append(settings.judge(images, prompts))
            if settings.clip is not None and prompts is not None:
                scores.append(settings.clip(images, prompts))
            kept = max(PICTURES, min(KEPT, PIXELS // (images.shape[2] * images.shape[3])))
            if number * size < kept:
                pictures.append(images[: kept - number * size].cpu())
            bar.update(len(indices))
    drawn = torch.cat(features)
    try:
        mean, covariance = statistics(drawn)
    except ValueError as error:
        raise ValueError(f"{job.name}: {error}") from error
    judged = torch.cat(verdicts) if verdicts else torch.empty(0)
    known = judged[~judged.isnan()].double()
    figures: dict[str, Any] = {
        "solver": load.solver,
        "measured": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "nfe": count.evaluations / settings.samples,
        "images_per_second": median_of.median(speeds),
        "peak_memory_mb": memory.megabytes,
        "joules_per_image": None if energy.joules is None else energy.joules / settings.samples,
        "load_seconds": load.seconds,
        "prompt_agreement": known.mean().item() if len(known) else None,
        "prompts_judged": len(known),
        "samples": settings.samples,
    }
    if job.stream == "samples":
        figures["diversity_lpips"] = _diversity(pipe, job, settings)
        # A user of one image passes neither noise nor generator, and pays for drawing both.
        single = {k: v for k, v in prepared([0])[1].items() if k not in ("latents", "generator")}
        times = latency(lambda: _call(pipe, single), device)
        figures |= {
            "latency_ms": times.median,
            "latency_ms_p5": times.p5,
            "latency_ms_p95": times.p95,
            "latency_repeats": times.repeats,
            **parts(pipe, lambda: _call(pipe, single), device),
            "throughput": throughput(batch_of, min(size, settings.samples), device),
            "latency_compiled_ms": None,
        }
        if settings.compiled:
            network(pipe).compile()
            figures["latency_compiled_ms"] = latency(lambda: _call(pipe, single), device).median
            load.forget()
    return Result(figures, drawn, mean, covariance, torch.cat(pictures), torch.cat(scores) if scores else None)


def _diversity(pipe: Pipeline, job: Job, settings: Settings) -> float | None:
    """Mean LPIPS between samples of the same prompt, drawn for this; None without LPIPS."""
    if settings.distance is None:
        return None
    prompts, groups = plan(settings.prompts, settings.samples)
    drawn = []
    for at in range(0, len(groups), settings.batch_size):
        indices = list(range(at, min(at + settings.batch_size, len(groups))))
        some = None if prompts is None else [prompts[i] for i in indices]
        ready = arguments(pipe, job.call, some, indices, settings.seed, "diversity")
        drawn.append(settings.images(_call(pipe, ready)).cpu())
    return pairwise(torch.cat(drawn), groups, settings.distance)


def _call(pipe: Pipeline, ready: dict[str, Any]) -> Any:
    with torch.inference_mode():
        return pipe(**ready)


def shrunk(images: Tensor) -> Tensor:
    """Images (K, 3, H, W), smaller where they are larger than the grid needs."""
    scale = LARGEST / max(images.shape[2:])
    if scale >= 1:
        return images
    return F.interpolate(images, scale_factor=scale, mode="bilinear", antialias=True).clamp(0, 1)
