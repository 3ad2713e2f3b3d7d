"""Stable Diffusion 1.x and 2.x: a latent UNet with a CLIP text encoder that predicts epsilon or v."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from teachers.core.denoiser import Condition, Denoiser
from teachers.families.latent_unet import LatentUNet
from teachers.loading.source import Pipelines


class StableDiffusion(LatentUNet):
    """`StableDiffusionPipeline`. `path` may be "pocket", the pipeline that is part of this project."""

    pipelines: ClassVar[Pipelines] = (StableDiffusionPipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"cross_attention_dim": ("text_encoder",)}
    options: ClassVar[dict[str, Any]] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}

    def condition(self, prompts: Sequence[str]) -> Condition:
        with torch.no_grad():
            embedding, _ = self.text_pipeline().encode_prompt(
                list(prompts), self.device, 1, do_classifier_free_guidance=False
            )
        return {"encoder_hidden_states": embedding.float()}

    def parts(self, student: Denoiser, network: nn.Module, scheduler: Any) -> dict[str, Any]:
        unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return super().parts(student, network, scheduler) | unused
