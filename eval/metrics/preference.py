"""Human preference scores of CLIP models that were tuned on people's choices: what PickScore and HPSv2 share.

Both are CLIP ViT-H/14, so a folder of transformers' `CLIPModel` and its processor is all they need. Their scores are
not clipped at zero, and only differences between rows mean something.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from eval.config.names import SCORERS
from eval.metrics.clip_score import ClipModel
from eval.metrics.context import MetricContext
from eval.metrics.prompt_score import PromptScore


class PreferenceScore(PromptScore):
    """The mean of a tuned CLIP model's score over all samples.

    Attributes:
        label: The name of the score in figures.
        learned_scale: Whether the cosine is multiplied by the model's own scale (PickScore) or by 100 (HPSv2).
    """

    label: ClassVar[str]
    learned_scale: ClassVar[bool] = False

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        option = f"--score {self.key}=FOLDER"
        self.model = ClipModel(self.source, context.device, context.allow_pickle, option)
        wanted, found = SCORERS[self.key].width, self.model.model.config.projection_dim
        if wanted != found:
            raise ValueError(
                f"{option} must name {self.label}, a CLIP ViT-H/14 with embeddings of {wanted} numbers; "
                f"{self.source} has embeddings of {found}"
            )
        self.heading = f"{self.label}@{context.samples}"

    def prompt_score(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """The score of each image."""
        return self.factor() * self.model.cosine(samples, prompts)

    @torch.no_grad()
    def factor(self) -> float:
        """The factor of the cosine."""
        return float(self.model.model.logit_scale.exp()) if self.learned_scale else 100.0
