"""CLAP score: how well a sound matches its prompt, as the cosine similarity of CLAP's two embeddings.

    score = 100 max(cos(sound, text), 0)

It is the CLIP score of images (`eval.metrics.clip_score`) with a CLAP model (Wu et al., arXiv 2211.06687). Scores of
different CLAP models cannot be compared, so the model's name is part of the figure's name.
"""

from collections.abc import Sequence

from torch import Tensor

from eval.features.media_models import ClapScorer
from eval.metrics.context import MetricContext
from eval.metrics.prompt_score import PromptScore
from teachers.media import Audio


class ClapScore(PromptScore):
    """Mean CLAP score over all sounds."""

    key = "clap_score"
    media = frozenset({"audio"})
    heading = "CLAP score"
    help = (
        "Higher is better. 100 max(cos, 0) of CLAP's embeddings of sound and prompt: the mean over all sounds and its "
        "95% interval. Bold: the highest mean and all that are tied with it in a paired test on the same sounds. "
        "Other CLAP models give other scores."
    )
    needs = frozenset({"images", "prompts", "clap"})
    position = 71
    named_by = "clap"
    lowest = 0.0

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        assert isinstance(context.medium, Audio)
        self.model = ClapScorer(self.source, context.medium.rate, context.device, context.allow_pickle)
        self.heading = f"{self.model.name}@{context.samples}"

    def prompt_score(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """The CLAP score of each sound."""
        return self.model(samples, prompts)
