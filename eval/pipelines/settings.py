"""The settings that all rows of a comparison share, and the pipeline in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.config.options import Timing
from eval.features.extractors import Extractor
from eval.features.resize import center_crop_resize
from eval.metrics.base import Metric
from eval.pipelines.jobs import Job
from eval.pipelines.latency import timed
from eval.pipelines.loading import load_pipeline
from eval.pipelines.machine import PRECISIONS
from eval.pipelines.networks import Pipeline
from eval.pipelines.solvers import use_modern_solver
from eval.pipelines.sources import Sources
from teachers.media import ANY_IMAGE, Image, Medium


@dataclass(frozen=True)
class Settings:
    """What all rows of one comparison share.

    Attributes:
        samples: Samples of each row.
        batch_size: Samples generated at once.
        seed: Seed of the noise.
        device: The pipelines' device.
        precision: The precision of the pipelines' weights.
        prompts: One prompt for each sample, or None.
        sources: The source images of the samples, or None.
        extractor: The feature extractor.
        metrics: The metrics of the comparison.
        compiled: Whether latency is also measured under torch.compile.
        size: Pixels per side that images are resized to before they are scored, or None.
        timing: How latencies are measured.
        allow_pickle: Whether pickled weights are read where there are no safetensors files.
        medium: What all rows sample.
    """

    samples: int
    batch_size: int
    seed: int
    device: torch.device
    precision: str
    prompts: list[str] | None
    extractor: Extractor
    metrics: Sequence[Metric] = ()
    compiled: bool = False
    size: int | None = None
    timing: Timing = field(default_factory=Timing)
    allow_pickle: bool = False
    medium: Medium = ANY_IMAGE
    sources: Sources | None = None

    def received(self, output: Any) -> Tensor:
        """The samples of a pipeline's output in the judged range, as metrics see them: images are resized to `size`."""
        return self.resized(self.medium.received(output))

    def resized(self, samples: Tensor) -> Tensor:
        """Images resized to `size`; other samples unchanged."""
        return center_crop_resize(samples, self.size) if isinstance(self.medium, Image) else samples


@dataclass
class Loader:
    """Loads pipelines and keeps the last one: rows of one pipeline are measured one after another.

    Attributes:
        settings: Device and precision.
        seconds: Seconds that loading the pipeline took.
        solver: The name of the pipeline's fast solver, or None.
    """

    settings: Settings
    seconds: float = 0.0
    solver: str | None = None
    _loaded: tuple[Path, bool] | None = None
    _pipe: Pipeline | None = field(default=None, repr=False)

    def __call__(self, job: Job) -> Pipeline:
        """The pipeline of `job`."""
        if self._loaded != (job.folder, job.fast_solver):
            self.unload()
            dtype = PRECISIONS[self.settings.precision]
            self._pipe, self.seconds = timed(
                lambda: load_pipeline(job.folder, self.settings.device, dtype, self.settings.allow_pickle),
                self.settings.device,
            )
            self.solver = use_modern_solver(self._pipe) if job.fast_solver else None
            self._loaded = (job.folder, job.fast_solver)
        assert self._pipe is not None
        return self._pipe

    def unload(self) -> None:
        """Free the pipeline: another one is loaded next, or this one was changed."""
        self._loaded, self._pipe, self.solver = None, None, None
