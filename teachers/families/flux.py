"""Flux.1: a rectified-flow transformer on packed latents; the guidance scale is an input of "dev"."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline
from torch import Tensor

from teachers.core.denoiser import Condition
from teachers.families.embedded_guidance import EmbeddedGuidance, default_guidance
from teachers.families.packing import pack, positions, unpack
from teachers.families.sample_size import height_and_width
from teachers.loading.source import Pipelines

DEFAULT_GUIDANCE = default_guidance(FluxPipeline)


def evaluate(network: Any, images: Sequence[Tensor], timestep: Tensor, cond: Condition, guidance: float) -> Tensor:
    """Call a transformer of Flux.1 on tokens (B, N, 4 C) of 2 x 2 patches, their positions, and timesteps in [0, 1].

    Args:
        network: The transformer.
        images: The noisy latents (B, C, H, W), and the latents of source images of the same size. The positions of each
            begin with its number.
        timestep: Native timesteps, (B,).
        cond: The condition.
        guidance: The embedded guidance scale if the condition has none.

    Returns:
        The output at the noisy latents, (B, C, H, W).
    """
    _, _, height, width = images[0].shape
    if network.config.guidance_embeds and "guidance" not in cond:
        cond = {**cond, "guidance": torch.full_like(timestep, guidance)}
    places = [positions(height // 2, width // 2, (number, 0, 0)) for number in range(len(images))]
    output: Tensor = network(
        torch.cat([pack(image) for image in images], dim=1),
        timestep=timestep / 1000,
        **cond,
        img_ids=torch.cat(places).to(images[0]),
        txt_ids=torch.zeros(cond["encoder_hidden_states"].shape[1], 3).to(images[0]),
        return_dict=False,
    )[0]
    return unpack(output[:, : len(places[0])], height, width)


class Flux(EmbeddedGuidance):
    """`FluxPipeline`. "dev" embeds the guidance scale and needs one evaluation; "schnell" has no guidance.

    A student that learns one guidance scale receives the pipeline's default in training. In its export the embedding is
    constant at that value, so `guidance_scale` of the call has no effect.
    """

    pipelines: ClassVar[Pipelines] = (FluxPipeline,)
    statistics: ClassVar[tuple[str, ...]] = ("scaling_factor", "shift_factor")
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "joint_attention_dim": ("text_encoder_2",),
        "pooled_projection_dim": ("text_encoder",),
    }
    passes_sigmas: ClassVar[bool] = True
    takes_variance_preserving: ClassVar[bool] = False
    refuses_steps: ClassVar[bool] = False

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        return evaluate(network, [sample], timestep, cond, DEFAULT_GUIDANCE)

    def latent_shape(self) -> tuple[int, int, int]:
        # It is not in the transformer's configuration; 1024 / 8 for Flux.1. An AutoencoderTiny has none.
        default = self.stock.default_sample_size * self.factor
        sides = height_and_width(self.stock.vae.config.get("sample_size", default))
        height, width = (side // self.factor // 2 * 2 for side in sides)  # the pipeline packs 2 x 2 patches
        return self.stock.transformer.config.in_channels // 4, height, width

    def unpack(self, native: Tensor) -> Tensor:
        return unpack(native, *self.shape[1:])

    def size_call(self) -> dict[str, Any]:
        height, width = self.image_size
        default = self.stock.default_sample_size * self.factor
        return {} if height == width == default else {"height": height, "width": width}

    def condition(self, prompts: Sequence[str]) -> Condition:
        with torch.no_grad():
            text, pooled, _ = self.text_pipeline().encode_prompt(list(prompts), None, device=self.device)
        return {"encoder_hidden_states": text.float(), "pooled_projections": pooled.float()}
