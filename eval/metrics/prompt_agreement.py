"""Prompt agreement: the share of samples in which a classifier recognizes what the prompt requests.

It needs features that come with a classifier (`eval.features.extractors.prompt_judge`): those of an embedded teacher.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from eval.metrics.base import EVERY_MEDIUM, Figure, SampleMetric
from eval.metrics.context import MetricContext
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

    def figure(self, known: Tensor, complete: bool) -> Figure:
        """The share, with the Wilson score interval."""
        share = known.mean().item()
        return Figure(share, share_interval(share, len(known)))


class ArithmeticAgreement(PromptAgreement):
    """Share of clips with the requested motion, or of sounds with the requested note, judged without a network."""

    key = "arithmetic_agreement"
    heading = "Motion or pitch agreement"
    help = "Share of samples with the motion or note of their prompt, and its 95% interval."
    media = frozenset({"video", "audio"})
    needs = frozenset({"images", "prompts", "arithmetic_judge"})
    position = 61

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        motion = context.medium.name == "video"
        self.heading = "Motion agreement" if motion else "Pitch agreement"
        self.help = (
            f"Share of {context.medium.plural} with the {'motion' if motion else 'note'} of their prompt, judged by "
            f"{'moments of the brightness' if motion else 'a harmonic sum'} without a network, and its 95% interval."
        )

    def score(self, images: Tensor, prompts: Sequence[str] | None) -> Tensor:
        """1 for agreement, 0 for none, NaN if the prompt names no motion or note."""
        assert self.context.arithmetic_judge is not None and prompts is not None
        return self.context.arithmetic_judge(images, list(prompts))
