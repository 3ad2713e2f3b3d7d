"""The interface of a metric: what it declares and what it returns. `context` has what it may read.

A metric is one class in one file. It becomes part of every comparison through the entry-point group `distill.metrics`,
in the setup.cfg of this project or in the pyproject.toml of any installed package:

    [project.entry-points."distill.metrics"]
    mean_brightness = "my_plugin.mean_brightness:MeanBrightness"

Most metrics subclass one of these:

- `SampleMetric`: the mean of one score per sample. Samples are scored in batches while they are generated.
- `Metric`: anything computed from a row's features and the reference.
- `GroupMetric`: a score of several samples of the same prompt.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from eval.metrics.context import MetricContext, Row
from eval.metrics.intervals import interval, standard_error
from teachers.support.keys import code

EVERY_MEDIUM = frozenset({"image", "video", "audio"})  # of metrics that read features only


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
        media: Names of the media whose samples it is for.
        needs: The entries of `eval.metrics.context.NEEDS` without which the metric is left out.
        format: A format specification such as ".3f" or ".1%"; "" means three significant digits.
        scale: Tables show the value times this factor, and the heading says so.
        position: Columns are sorted by it.
        summary: Whether the table in the terminal shows the figure.
        marks_best: Whether tables mark the best row and all rows that are statistically tied with it.
        interval_key: The interval's entry in report.json; by default `key` + "_interval".
        best_key: The mark's entry in report.json; by default `key` + "_best".
        ratio_key: Entry of the ratio to the baseline's value in report.json, or None for no such column.
        problem: Why the metric failed and is left out; None while it works.
    """

    key: ClassVar[str]
    heading: str
    help: str
    higher_is_better: ClassVar[bool | None]
    media: ClassVar[frozenset[str]] = frozenset({"image"})
    needs: ClassVar[frozenset[str]] = frozenset()
    format: ClassVar[str] = ""
    scale: ClassVar[int] = 1
    position: ClassVar[int] = 1000
    summary: ClassVar[bool] = True
    marks_best: ClassVar[bool] = False
    interval_key: ClassVar[str]
    best_key: ClassVar[str]
    ratio_key: ClassVar[str | None] = None
    problem: str | None = None

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
            ValueError: If the user selected something that does not exist or does not fit.
        """
        self.context = context

    @abstractmethod
    def compute(self, row: Row) -> Figure | None:
        """The figure of one row.

        Args:
            row: The row's features, statistics, first samples and scores, and the reference.

        Returns:
            The figure, in the unit that `heading` states; None if the row does not allow it.
        """

    def describe(self) -> dict[str, Any]:
        """What the report has to know to show the figure, as an entry of `metrics` in report.json."""
        return {
            "key": self.key,
            "heading": self.heading,
            "help": self._help(),
            "higher_is_better": self.higher_is_better,
            "format": self.format,
            "scale": self.scale,
            "summary": self.summary,
            "interval": self.interval_key,
            "best": self.best_key if self.marks_best else None,
            "ratio": self.ratio_key,
        }

    def _help(self) -> str:
        """The explanation in the words of the medium: metrics of features say "image" for every sample."""
        medium = self.context.medium
        words = {"image": medium.noun, "images": medium.plural}
        return re.sub(r"\bimages?\b", lambda found: words[found[0]], self.help)


class ScoredMetric(Metric):
    """A metric whose scores are computed while a row is generated and stored in the row's cache entry."""

    def cache_key(self) -> list[Any]:
        """Everything besides the images and prompts that the scores depend on, as JSON values.

        The code of the metric's class is part of it. A metric that reads weights or a configuration extends the list,
        for instance by `teachers.support.keys.content(path)`.
        """
        return [f"{type(self).__module__}.{type(self).__qualname__}", code(type(self))]


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
            images: Samples in the judged range: images (B, 3, H, W) or clips (B, 3, F, H, W) in [0, 1], or sounds
                (B, channels, samples) in [-1, 1].
            prompts: Their B prompts; None in a comparison without prompts.

        Returns:
            One score per image (B,); NaN for a sample that the metric does not apply to.
        """

    def compute(self, row: Row) -> Figure | None:
        """The figure of the scores that are not NaN."""
        scores = row.scores[self.key]
        known = scores[~scores.isnan()].double()
        return self.figure(known, len(known) == len(scores)) if len(known) else None

    def figure(self, known: Tensor, complete: bool) -> Figure:
        """The mean of scores, with the interval of a mean.

        Args:
            known: The scores that are not NaN, (N,) in float64 with N above 0.
            complete: Whether no score is NaN, so that scores of two rows can be compared in pairs.
        """
        mean = known.mean().item()
        if len(known) < 2:
            return Figure(mean)
        return Figure(mean, interval(mean, standard_error(known), self.lowest), known if complete else None)


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
