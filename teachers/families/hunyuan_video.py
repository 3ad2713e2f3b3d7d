"""HunyuanVideo: a rectified-flow transformer of clips with Llama and CLIP; the guidance scale is an input."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import HunyuanVideoPipeline
from torch import Tensor

from teachers.core.denoiser import Condition
from teachers.families.embedded_guidance import EmbeddedGuidance, default_guidance
from teachers.families.latent_video import LatentVideo
from teachers.loading.source import Pipelines

DEFAULT_GUIDANCE = default_guidance(HunyuanVideoPipeline)


class HunyuanVideo(EmbeddedGuidance, LatentVideo):
    """`HunyuanVideoPipeline`, whose network embeds the guidance scale and needs one evaluation."""

    pipelines: ClassVar[Pipelines] = (HunyuanVideoPipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text_embed_dim": ("text_encoder",),
        "pooled_projection_dim": ("text_encoder_2",),
    }
    passes_sigmas: ClassVar[bool] = True
    takes_variance_preserving: ClassVar[bool] = False
    refuses_steps: ClassVar[bool] = False
    stream: ClassVar[int] = 0
    usual_rate: ClassVar[float] = 24.0
    side_unit: ClassVar[int] = 16

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network with 1000 times the guidance scale, as the pipeline does."""
        scale = cond.get("guidance", torch.full_like(timestep, DEFAULT_GUIDANCE))
        guidance = {"guidance": 1000 * scale if network.config.guidance_embeds else None}
        output: Tensor = network(sample, timestep=timestep, **{**cond, **guidance}, return_dict=False)[0]
        return output

    def patch(self) -> tuple[int, int]:
        config = self.stock.transformer.config
        return int(config.patch_size_t), int(config.patch_size)

    def condition(self, prompts: Sequence[str]) -> Condition:
        with torch.no_grad():
            text, pooled, mask = self.text_pipeline().encode_prompt(list(prompts), device=self.device)
        return {
            "encoder_hidden_states": text.float(),
            "encoder_attention_mask": mask.float(),
            "pooled_projections": pooled.float(),
        }
