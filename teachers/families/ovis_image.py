"""Ovis-Image: a rectified-flow transformer on packed latents, with Qwen3 as its text encoder."""

from collections.abc import Mapping
from typing import ClassVar

from diffusers import OvisImagePipeline

from teachers.families.flow_transformer import FlowTransformer
from teachers.loading.source import Pipelines


class OvisImage(FlowTransformer):
    """`OvisImagePipeline`. Prompts follow the pipeline's instruction; their padding is zero and is not masked."""

    pipelines: ClassVar[Pipelines] = (OvisImagePipeline,)
    statistics: ClassVar[tuple[str, ...]] = ("scaling_factor", "shift_factor")
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"joint_attention_dim": ("text_encoder",)}
    packs: ClassVar[bool] = True
    network_patch: ClassVar[int | None] = 1  # the pipeline makes the patches
    numbers_text: ClassVar[bool] = True
