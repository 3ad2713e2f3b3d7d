"""AuraFlow: a rectified-flow transformer with a UMT5 text encoder, whose padding is zero."""

from collections.abc import Mapping
from typing import ClassVar

from diffusers import AuraFlowPipeline

from teachers.families.flow_transformer import FlowTransformer
from teachers.loading.source import Pipelines

SIDE = 1024  # of an image, if the pipeline's call has neither height nor width


class AuraFlow(FlowTransformer):
    """`AuraFlowPipeline`. The transformer's positions limit the size of images."""

    pipelines: ClassVar[Pipelines] = (AuraFlowPipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"joint_attention_dim": ("text_encoder",)}
    passes_sigmas: ClassVar[bool] = False

    def default_side(self) -> int:
        return SIDE

    def largest_side(self) -> int:
        return int(self.stock.transformer.config.pos_embed_max_size**0.5) * self.side_unit()
