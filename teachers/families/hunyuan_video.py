"""HunyuanVideo: a rectified-flow transformer of clips with Llama and CLIP; the guidance scale is an input."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import HunyuanVideoPipeline
from torch import Tensor

from teachers.core.denoiser import Condition
from teachers.core.teacher import Teacher
from teachers.families.embedded_guidance import EmbeddedGuidance, default_guidance
from teachers.families.latent_video import LatentVideo
from teachers.loading.source import Pipelines

DEFAULT_GUIDANCE = default_guidance(HunyuanVideoPipeline)


class HunyuanVideo(EmbeddedGuidance, LatentVideo):
    """`HunyuanVideoPipeline`. Most networks embed the guidance scale and need one evaluation.

    Others have classifier-free guidance, which the pipeline applies at `true_cfg_scale` with a negative prompt only.

    Raises:
        ValueError: If the network begins with an image.
    """

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

    def __init__(
        self, pipeline: HunyuanVideoPipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        kind = pipeline.transformer.config.image_condition_type
        if kind is not None:
            raise ValueError(
                f"image_condition_type of the transformer must be None, got {kind!r}: such a network needs an image"
            )
        super().__init__(pipeline, sigma_data, size)

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network with 1000 times the guidance scale, as the pipeline does."""
        scale = cond.get("guidance", torch.full_like(timestep, DEFAULT_GUIDANCE))
        guidance = {"guidance": 1000 * scale if network.config.guidance_embeds else None}
        output: Tensor = network(sample, timestep=timestep, **{**cond, **guidance}, return_dict=False)[0]
        return output

    @classmethod
    def check_negative_prompt(cls) -> None:
        return  # `set_negative_prompt` refuses it for networks that embed the guidance scale

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition, guidance: float | Tensor = 1.0) -> Tensor:
        """The velocity at an embedded guidance scale, or with classifier-free guidance."""
        if self.embeds_guidance:
            return super().velocity(x_t, t, cond, guidance)
        return Teacher.velocity(self, x_t, t, cond, guidance)

    def usual_call(self, num_steps: int, guidance: float) -> dict[str, Any]:
        call = super().usual_call(num_steps, guidance)
        if not self.embeds_guidance:
            call |= {"guidance_scale": 1.0, "true_cfg_scale": guidance, "negative_prompt": self.negative_prompt or ""}
        return call

    def side_unit(self) -> int:
        return math.lcm(16, super().side_unit())

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
