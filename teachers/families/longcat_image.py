"""LongCat-Image: a rectified-flow transformer on packed latents, with Qwen2.5-VL as its text encoder."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import LongCatImagePipeline
from torch import Tensor

from teachers.core.denoiser import Condition
from teachers.families.output_guidance import TokenNormGuidance
from teachers.families.packing import pack, positions, unpack
from teachers.families.sized_image import SizedImage
from teachers.loading.source import Pipelines

LENGTH = 512  # tokens of a prompt in the pipeline


class LongCatImage(TokenNormGuidance, SizedImage):
    """`LongCatImagePipeline` without its rewriting of prompts. Guidance does not increase the norm of a token."""

    pipelines: ClassVar[Pipelines] = (LongCatImagePipeline,)
    statistics: ClassVar[tuple[str, ...]] = ("scaling_factor", "shift_factor")
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"joint_attention_dim": ("text_encoder",)}
    largest_factor: ClassVar[float] = 1.0
    norm_offset: ClassVar[float] = 1e-8

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network on tokens (B, H W / 4, 4 C), their positions, and timesteps in [0, 1]."""
        height, width = sample.shape[2:]
        text = torch.arange(cond["encoder_hidden_states"].shape[1])
        output: Tensor = network(
            pack(sample),
            timestep=timestep / 1000,
            **cond,
            img_ids=positions(height // 2, width // 2, (1, LENGTH, LENGTH)).to(sample.device, torch.float32),
            txt_ids=torch.stack([0 * text, text, text], dim=1).to(sample.device, torch.float32),
            return_dict=False,
        )[0]
        return unpack(output, height, width)

    def condition(self, prompts: Sequence[str]) -> Condition:
        if self.device.type == "meta":
            return {key: value.expand(len(prompts), *value.shape[1:]) for key, value in self.meta_condition().items()}
        with torch.no_grad():
            text, _ = self.text_pipeline().encode_prompt(list(prompts))
        return {"encoder_hidden_states": text.float()}

    def meta_condition(self) -> Condition:
        width = self.stock.transformer.config.joint_attention_dim
        return {"encoder_hidden_states": torch.empty(1, LENGTH, width, device="meta")}

    def size_call(self) -> dict[str, Any]:
        return {**super().size_call(), "enable_prompt_rewrite": False}

    def usual_call(self, num_steps: int, guidance: float) -> dict[str, Any]:
        call = super().usual_call(num_steps, guidance)
        return call | ({"negative_prompt": self.negative_prompt or ""} if guidance > 1 else {})
