"""Chroma: a rectified-flow transformer on packed latents, without guidance as an input, and with a T5 text encoder."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch.nn.functional as F
from diffusers import ChromaPipeline

from teachers.core.denoiser import Condition
from teachers.families.flow_transformer import FlowTransformer
from teachers.loading.source import Pipelines

MASK = "attention_mask"  # an entry of the condition: of the tokens of the prompt and of the image


class Chroma(FlowTransformer):
    """`ChromaPipeline`. The mask keeps the tokens of a prompt and the first token of its padding."""

    pipelines: ClassVar[Pipelines] = (ChromaPipeline,)
    statistics: ClassVar[tuple[str, ...]] = ("scaling_factor", "shift_factor")
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"joint_attention_dim": ("text_encoder",)}
    encoded: ClassVar[tuple[str | None, ...]] = ("encoder_hidden_states", None, MASK)
    packs: ClassVar[bool] = True
    network_patch: ClassVar[int | None] = 1  # the pipeline makes the patches

    def condition(self, prompts: Sequence[str]) -> Condition:
        found = super().condition(prompts)
        return {**found, MASK: F.pad(found[MASK], (0, self.tokens()), value=1.0)}
