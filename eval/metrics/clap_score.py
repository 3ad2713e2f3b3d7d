"""CLAP score: how well a sound matches its prompt, as the cosine similarity of CLAP's two embeddings.

    score = 100 max(cos(sound, text), 0)

It is the CLIP score of images (`eval.metrics.clip_score`) with a CLAP model (Wu et al., arXiv 2211.06687). Scores of
different CLAP models cannot be compared, so the model's name is part of the figure's name.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from eval.features.media_models import ClapScorer
from eval.metrics.base import SampleMetric
from eval.metrics.context import MetricContext
from teachers.media import Audio
from teachers.support.keys import content


class ClapScore(SampleMetric):
    """Mean CLAP score over all sounds."""

    key = "clap_score"
    media = frozenset({"audio"})
    heading = "CLAP score"
    help = (
        "Higher is better. 100 max(cos, 0) of CLAP's embeddings of sound and prompt: the mean over all sounds and its "
        "95% interval. Bold: the highest mean and all that are tied with it in a paired test on the same sounds. "
        "Other CLAP models give other scores."
    )
    higher_is_better = True
    needs = frozenset({"images", "prompts", "clap"})
    position = 71
    marks_best = True
    lowest = 0.0

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        assert context.clap is not None and isinstance(context.medium, Audio)
        self.source = context.clap
        self.model = ClapScorer(context.clap, context.medium.rate, context.device)
        self.heading = f"{self.model.name}@{context.samples}"

    def score(self, images: Tensor, prompts: Sequence[str] | None) -> Tensor:
        """The CLAP score of each sound."""
        assert prompts is not None
        return self.model(images, prompts)

    def cache_key(self) -> list[Any]:
        """The scores depend on the model's weights."""
        return [*super().cache_key(), content(self.source)]
