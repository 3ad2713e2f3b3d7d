"""AuraFlow: a rectified-flow transformer with a UMT5 text encoder, whose padding is zero."""

from collections.abc import Mapping
from typing import ClassVar

from diffusers import AuraFlowPipeline

from teachers.families.flow_transformer import FlowTransformer
from teachers.loading.source import Pipelines

SIDE = 1024  # of an image, if the pipeline's call has neither height nor width


class AuraFlow(FlowTransformer):
    """`AuraFlowPipeline`.

    Raises:
        ValueError: If images have more patches than the transformer has positions for.
    """

    pipelines: ClassVar[Pipelines] = (AuraFlowPipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"joint_attention_dim": ("text_encoder",)}
    passes_sigmas: ClassVar[bool] = False

    def default_side(self) -> int:
        return SIDE

    def set_size(self) -> None:
        super().set_size()
        self.check_positions(int(self.stock.transformer.config.pos_embed_max_size**0.5))
