"""The interface of a metric: what it declares, what it may read, and what it returns.

A metric is one class in one file. It becomes part of every comparison through the entry-point group `distill.metrics`,
in the setup.cfg of this project or of any installed package:

    [options.entry_points]
    distill.metrics =
        mean_brightness = my_package.mean_brightness:MeanBrightness

Most metrics subclass one of these:

- `SampleMetric`: the mean of one score per sample. Samples are scored in batches while they are generated.
- `Metric`: anything computed from a row's features and the reference.
- `GroupMetric`: a score of several samples of the same prompt.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from eval.config.names import INCEPTION_MODES
from eval.features.extractors import Extractor
from eval.metrics.intervals import interval, standard_error

T = TypeVar("T")
Distance = Callable[[Tensor, Tensor], Tensor]  # two batches (B, 3, H, W) in [0, 1] -> (B,)
PromptClassifier = Callable[
    [Tensor, list[str]], Tensor
]  # images (B, 3, H, W) and B prompts -> (B,), see `prompt_judge`

NEEDS = {
    "features": "features of the row's samples; always available",
    "reference": "mean and covariance of the reference's features; always available",
    "images": "the row's first images; always available",
    "reference_features": "the features of each reference image",
    "inception_features": "features of Inception-v3",
    "prompts": "a prompt for each sample",
    "prompt_classifier": "a classifier that recognizes what a prompt requests",
    "teacher_images": "the teacher's images from the same noise and prompts",
    "lpips": "the LPIPS network, with its weights on this machine",
    "clip": "a CLIP model, selected with --clip",
}


@dataclass(frozen=True)
class Reference:
    """The distribution that samples are compared with.

    Attributes:
        mean: Mean of the features (D,), float64.
        covariance: Covariance of the features (D, D), float64.
        features: The features (N, D) themselves, or None if only the statistics are known.
    """

    mean: Tensor
    covariance: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class MetricContext:
    """What all rows of one comparison share.

    Attributes:
        samples: Samples of each row.
        seed: Seed of the comparison.
        device: The device for a metric's own networks.
        extractor: The feature extractor.
        dimensions: Dimensions of the features.
        prompts: One prompt for each sample, or None.
        reference: The reference, or None if it is the teacher's own samples, which are not generated yet.
        has_teacher: Whether the comparison has a row of the teacher's usual call.
        lpips: The LPIPS distance, or None if its weights are not on this machine.
        prompt_classifier: Recognizes what a prompt requests, or None.
        clip: The CLIP model selected with --clip: a folder or a Hub id.
    """

    samples: int
    seed: int
    device: torch.device
    extractor: Extractor
    dimensions: int
    prompts: Sequence[str] | None = None
    reference: Reference | None = None
    has_teacher: bool = True
    lpips: Distance | None = None
    prompt_classifier: PromptClassifier | None = None
    clip: str | None = None

    @property
    def reference_images(self) -> int:
        """How many reference images are compared with as many samples; 0 if only statistics are known."""
        if self.reference is None:
            return self.samples
        return 0 if self.reference.features is None else min(self.samples, len(self.reference.features))

    def available(self) -> set[str]:
        """The `NEEDS` that this comparison meets."""
        conditions = {
            "reference_features": self.reference_images > 0,
            "inception_features": self.extractor.name in INCEPTION_MODES,
            "prompts": self.prompts is not None,
            "prompt_classifier": self.prompt_classifier is not None,
            "teacher_images": self.has_teacher,
            "lpips": self.lpips is not None,
            "clip": self.clip is not None,
        }
        return {need for need in NEEDS if conditions.get(need, True)}


@dataclass(frozen=True)
class Row:
    """One row of a comparison after its samples were generated.

    Attributes:
        features: Features of the samples (N, D).
        mean: Mean of the features (D,), float64.
        covariance: Covariance of the features (D, D), float64.
        images: The first images (K, 3, H, W) in [0, 1], in 8-bit steps.
        scores: The scores of each `SampleMetric` and `GroupMetric`, by the metric's key.
        reference: The reference of the comparison.
        teacher_images: The teacher's images (K, 3, H, W) from the same noise and prompts, or None if there is no
            teacher, this row is the teacher's, or the sizes differ.
    """

    features: Tensor
    mean: Tensor
    covariance: Tensor
    images: Tensor
    scores: Mapping[str, Tensor]
    reference: Reference
    teacher_images: Tensor | None = None
    _shared: dict[str, Any] = field(default_factory=dict, repr=False)

    def shared(self, name: str, compute: Callable[[], T]) -> T:
        """The value of `compute()`, computed once per row for all metrics that use the same `name`."""
        if name not in self._shared:
            self._shared[name] = compute()
        value: T = self._shared[name]
        return value


@dataclass(frozen=True)
class Figure:
    """The value of a metric for one row.

    Attributes:
        value: The value itself.
        interval: The ends of its 95% confidence interval, or None if unknown.
        influence: The effect of each sample on the value (N,), or None if unknown. For a mean it is the scores. It
            makes paired comparisons between rows possible (`eval.metrics.intervals`).
    """

    value: float
    interval: Sequence[float] | None = None
    influence: Tensor | None = None


class Metric(ABC):
    """A figure of every row of a comparison.

    Attributes:
        key: The figure's entry in the rows of report.json.
        heading: The column's heading. Set it in `__init__` if it depends on the comparison.
        help: One line that explains the figure.
        higher_is_better: True, False, or None if neither direction is better.
        needs: The entries of `NEEDS` without which the metric is left out.
        format: A format specification such as ".3f" or ".1%"; "" means three significant digits.
        scale: Tables show the value times this factor, and the heading says so.
        position: Columns are sorted by it.
        summary: Whether the table in the terminal shows the figure.
        marks_best: Whether tables mark the best row and all rows that are statistically tied with it.
        interval_key: The interval's entry in report.json; by default `key` + "_interval".
        best_key: The mark's entry in report.json; by default `key` + "_best".
        ratio_key: Entry of the ratio to the baseline's value in report.json, or None for no such column.
    """

    key: ClassVar[str]
    heading: str
    help: str
    higher_is_better: ClassVar[bool | None]
    needs: ClassVar[frozenset[str]] = frozenset()
    format: ClassVar[str] = ""
    scale: ClassVar[int] = 1
    position: ClassVar[int] = 1000
    summary: ClassVar[bool] = True
    marks_best: ClassVar[bool] = False
    interval_key: ClassVar[str]
    best_key: ClassVar[str]
    ratio_key: ClassVar[str | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "key" in cls.__dict__:
            for name in ("interval", "best"):
                if f"{name}_key" not in cls.__dict__:
                    setattr(cls, f"{name}_key", f"{cls.key}_{name}")

    def __init__(self, context: MetricContext) -> None:
        """Prepare the metric for one comparison, for example by loading its network.

        Args:
            context: What all rows share. It meets everything in `needs`.

        Raises:
            ValueError: The user selected something that does not exist or does not fit.
        """
        self.context = context

    @abstractmethod
    def compute(self, row: Row) -> Figure | None:
        """The figure of one row, or None if the row does not allow it."""

    def describe(self) -> dict[str, Any]:
        """What the report has to know to show the figure, as an entry of `metrics` in report.json."""
        return {
            "key": self.key,
            "heading": self.heading,
            "help": self.help,
            "higher_is_better": self.higher_is_better,
            "format": self.format,
            "scale": self.scale,
            "summary": self.summary,
            "interval": self.interval_key,
            "best": self.best_key if self.marks_best else None,
            "ratio": self.ratio_key,
        }


class ScoredMetric(Metric):
    """A metric whose scores are computed while a row is generated and stored in the row's cache entry.

    Attributes:
        version: Increase it when the same images get other scores, so that cached rows are measured again.
    """

    version: ClassVar[int] = 1

    def cache_key(self) -> list[Any]:
        """Everything besides the images and prompts that the scores depend on, as JSON values.

        A metric that reads weights or a configuration extends the list, for instance by
        `eval.pipelines.cache.content(path)`.
        """
        return [f"{type(self).__module__}.{type(self).__qualname__}", self.version]


class SampleMetric(ScoredMetric):
    """The mean of one score per sample.

    Attributes:
        lowest: The lowest possible mean, which bounds the interval.
    """

    lowest: ClassVar[float] = -math.inf

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str] | None) -> Tensor:
        """Score one batch.

        Args:
            images: Images (B, 3, H, W) in [0, 1].
            prompts: Their B prompts; None in a comparison without prompts.

        Returns:
            One score per image (B,); NaN for a sample that the metric does not apply to.
        """

    def compute(self, row: Row) -> Figure | None:
        """The mean of the scores that are not NaN, with the interval of a mean."""
        scores = row.scores[self.key]
        known = scores[~scores.isnan()].double()
        if len(known) == 0:
            return None
        mean = known.mean().item()
        if len(known) < 2:
            return Figure(mean)
        paired = known if len(known) == len(scores) else None
        return Figure(mean, interval(mean, standard_error(known), self.lowest), paired)


class GroupMetric(ScoredMetric):
    """A score of several samples of the same prompt, which are generated in addition to the row's samples."""

    @abstractmethod
    def score_groups(self, images: Tensor, groups: Sequence[int]) -> Tensor:
        """Score the additional samples of one row.

        Args:
            images: Images (N, 3, H, W) in [0, 1], several for each prompt.
            groups: The number of the prompt of each image.

        Returns:
            Scores of any number (P,).
        """
