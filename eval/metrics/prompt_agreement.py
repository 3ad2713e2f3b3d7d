"""Prompt agreement: the share of samples in which a classifier recognizes what the prompt requests.

It needs features that come with a classifier (`eval.features.extractors.prompt_judge`): those of the pocket teacher.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from eval.metrics.base import EVERY_MEDIUM, Figure, SampleMetric
from eval.metrics.context import Row
from eval.metrics.intervals import share_interval


class PromptAgreement(SampleMetric):
    """Share of the samples that show what their prompt requests."""

    key = "prompt_agreement"
    heading = "Prompt agreement"
    help = "Share of samples in which the classifier recognizes what the prompt requests, and its 95% interval."
    higher_is_better = True
    media = EVERY_MEDIUM
    needs = frozenset({"images", "prompts", "prompt_classifier"})
    format = ".1%"
    position = 60

    def score(self, images: Tensor, prompts: Sequence[str] | None) -> Tensor:
        """1 for agreement, 0 for none, NaN if the prompt requests nothing that the classifier knows."""
        assert self.context.prompt_classifier is not None and prompts is not None
        return self.context.prompt_classifier(images, list(prompts))

    def cache_key(self) -> list[Any]:
        """The classifier belongs to the features."""
        return [*super().cache_key(), self.context.extractor.name, self.context.extractor.weights]

    def compute(self, row: Row) -> Figure | None:
        """The share, with the Wilson score interval."""
        scores = row.scores[self.key]
        known = scores[~scores.isnan()].double()
        if len(known) == 0:
            return None
        share = known.mean().item()
        return Figure(share, share_interval(share, len(known)))
