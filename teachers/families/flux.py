"""Flux.1: a rectified-flow transformer on packed latents; the guidance scale is an input of "dev"."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import FluxPipeline
from torch import Tensor

from teachers.core.denoiser import Condition, Denoiser
from teachers.core.teacher import height_and_width
from teachers.families.latent import LatentTeacher
from teachers.loading.source import Pipelines

DEFAULT_GUIDANCE = float(inspect.signature(FluxPipeline.__call__).parameters["guidance_scale"].default)


class Flux(LatentTeacher):
    """`FluxPipeline`. "dev" embeds the guidance scale and needs one evaluation; "schnell" has no guidance.

    A student that learns one guidance scale receives the pipeline's default in training. In its export the embedding is
    constant at that value, so `guidance_scale` of the call has no effect.
    """

    pipelines: ClassVar[Pipelines] = (FluxPipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "joint_attention_dim": ("text_encoder_2",),
        "pooled_projection_dim": ("text_encoder",),
    }
    passes_sigmas: ClassVar[bool] = True
    takes_variance_preserving: ClassVar[bool] = False
    ignores_guidance: ClassVar[bool] = True
    refuses_steps: ClassVar[bool] = False

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network on tokens (B, H W / 4, 4 C) of 2 x 2 patches, their positions, and timesteps in [0, 1]."""
        _, _, height, width = sample.shape
        rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
        positions = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
        if network.config.guidance_embeds and "guidance" not in cond:
            cond = {**cond, "guidance": torch.full_like(timestep, DEFAULT_GUIDANCE)}
        output: Tensor = network(
            F.pixel_unshuffle(sample, 2).flatten(2).mT,
            timestep=timestep / 1000,
            **cond,
            img_ids=positions.to(sample),
            txt_ids=torch.zeros(cond["encoder_hidden_states"].shape[1], 3).to(sample),
            return_dict=False,
        )[0]
        return F.pixel_shuffle(output.mT.unflatten(2, (height // 2, width // 2)), 2)

    def latent_shape(self) -> tuple[int, int, int]:
        sides = height_and_width(self.stock.vae.config.sample_size)  # not in the transformer's; 1024 / 8 for Flux.1
        height, width = (side // self.factor // 2 * 2 for side in sides)  # the pipeline packs 2 x 2 patches
        return self.stock.transformer.config.in_channels // 4, height, width

    def unpack(self, native: Tensor) -> Tensor:
        if native.ndim != 3:  # a pipeline draws its first noise before it packs it
            return native
        height, width = self.shape[1:]
        return F.pixel_shuffle(native.mT.unflatten(2, (height // 2, width // 2)), 2)

    def size_call(self) -> dict[str, Any]:
        height, width = self.image_size
        default = self.stock.default_sample_size * self.factor
        return {} if height == width == default else {"height": height, "width": width}

    def condition(self, prompts: Sequence[str]) -> Condition:
        with torch.no_grad():
            text, pooled, _ = self.text_pipeline().encode_prompt(list(prompts), None, device=self.device)
        return {"encoder_hidden_states": text.float(), "pooled_projections": pooled.float()}

    @property
    def embeds_guidance(self) -> bool:
        return bool(self.stock.transformer.config.guidance_embeds)

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition, guidance: float | Tensor = 1.0) -> Tensor:
        """The velocity at an embedded guidance scale, in one evaluation. "schnell" ignores `guidance`."""
        if self.embeds_guidance:
            scale = guidance if isinstance(guidance, Tensor) else torch.full_like(t, guidance)
            cond = {**cond, "guidance": scale.float()}
        with self._on_device():
            return self.denoiser.velocity(x_t, t, cond)

    def embed_guidance(self, student: Denoiser, guidance: float) -> None:
        if not self.embeds_guidance:
            raise ValueError("method.guidances must be empty: this Flux has no input for the guidance scale")
        student.defaults = self.guidance_condition(student, torch.tensor([guidance]))
        student.guidance_input = True

    def guidance_condition(self, student: Denoiser, guidance: Tensor) -> Condition:
        return {"guidance": guidance.float()}

    def lora_call(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        scale = {"guidance_scale": DEFAULT_GUIDANCE} if self.embeds_guidance else {}
        return super().lora_call(num_steps, times) | scale

    @torch.no_grad()
    def parts(self, student: Denoiser, network: Any, scheduler: Any) -> dict[str, Any]:
        if network.config.guidance_embeds and not student.guidance_input:  # one embedding for all guidance scales
            embed, layer = network.time_text_embed, network.time_text_embed.guidance_embedder.linear_2
            features = embed.time_proj(torch.tensor([DEFAULT_GUIDANCE * 1000], device=layer.weight.device))
            constant = embed.guidance_embedder(features.to(layer.weight.dtype))[0]
            layer.weight.zero_()
            layer.bias.copy_(constant)
        return super().parts(student, network, scheduler)
