"""Scores of samples and their prompts by a model that the user names: the base of the CLIP score and its relatives."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from eval.metrics.base import SampleMetric
from eval.metrics.context import MetricContext
from teachers.support.keys import content


class PromptScore(SampleMetric):
    """The mean of a model's scores of samples and their prompts.

    Attributes:
        named_by: The entry of `NEEDS` by which the user names the model (`MetricContext.model_source`).
        source: The model: a folder or a Hub id.
    """

    higher_is_better = True
    marks_best = True
    named_by: ClassVar[str]

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.source = context.model_source(self.named_by)

    def score(self, images: Tensor, prompts: Sequence[str] | None) -> Tensor:
        """The score of each sample and its prompt."""
        assert prompts is not None
        return self.prompt_score(images, prompts)

    @abstractmethod
    def prompt_score(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """The score (B,) of each sample (B, ...) in the judged range and its prompt."""

    def cache_key(self) -> list[Any]:
        """The scores depend on the model's weights."""
        return [*super().cache_key(), content(self.source)]
