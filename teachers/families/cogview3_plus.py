"""CogView3-Plus: a diffusion transformer that predicts v, with a T5 text encoder."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from diffusers import CogView3PlusPipeline

from teachers.core.denoiser import Condition
from teachers.families.cogview import CogView
from teachers.loading.source import Pipelines

TEXT = "encoder_hidden_states"  # an entry of the condition


class CogView3Plus(CogView):
    """`CogView3PlusPipeline`. Without a negative prompt, guidance's second evaluation has zeros for the embeddings.

    Prompts are padded to 224 tokens, and nothing has a mask.

    Raises:
        ValueError: If images have more patches than the transformer has positions for.
    """

    pipelines: ClassVar[Pipelines] = (CogView3PlusPipeline,)
    passes_sigmas: ClassVar[bool] = False
    takes_flow: ClassVar[bool] = False
    takes_variance_preserving: ClassVar[bool] = True
    refuses_steps: ClassVar[bool] = True
    unit: ClassVar[int] = 8

    def largest_side(self) -> int:
        return int(self.stock.transformer.config.pos_embed_max_size) * self.compression() * self.patch

    def condition(self, prompts: Sequence[str]) -> Condition:
        with torch.no_grad():
            text, _ = self.text_pipeline().encode_prompt(
                list(prompts), do_classifier_free_guidance=False, device=self.device
            )
        return {TEXT: text.float(), **self.size_entries(len(prompts), text.device)}

    def encode_null_condition(self) -> Condition:
        cond = self.condition([""])
        return {**cond, TEXT: torch.zeros_like(cond[TEXT])}
