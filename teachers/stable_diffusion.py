"""Stable Diffusion 1.x and 2.x: a latent UNet with text, predicting epsilon or v."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor, nn

import teachers.pocket
from teachers.denoiser import Condition, Denoiser
from teachers.few_step import (
    add_guidance_embedding,
    guidance_embedding,
    guidance_projection,
    guidance_width,
    ignore_guidance,
)
from teachers.latent import LatentTeacher
from teachers.teacher import Pipelines, local_or_hub


class StableDiffusion(LatentTeacher):
    """`StableDiffusionPipeline`; `path` may be "pocket", the pipeline that ships with this project."""

    pipelines: ClassVar[Pipelines] = (StableDiffusionPipeline,)
    network: ClassVar[str] = "unet"
    options: ClassVar[dict[str, Any]] = {"safety_checker": None}
    ignores_guidance: ClassVar[bool] = True

    @classmethod
    def locate(cls, path: str) -> str:
        return str(teachers.pocket.PIPELINE) if path == "pocket" else local_or_hub(path)

    def condition(self, prompts: Sequence[str]) -> Condition:
        stock = self.stock
        with torch.no_grad():
            embedding, _ = stock.encode_prompt(list(prompts), stock.device, 1, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": embedding.float()}

    def embed_guidance(self, student: Denoiser, guidance: float) -> None:
        add_guidance_embedding(student.network)
        student.defaults = self.guidance_condition(student, torch.tensor([guidance]))

    def guidance_condition(self, student: Denoiser, guidance: Tensor) -> Condition:
        return {"timestep_cond": guidance_embedding(guidance, guidance_width(student.network))}

    def assemble(self, network: nn.Module, scheduler: Any) -> DiffusionPipeline:
        if guidance_projection(network) is None:  # a student that takes its guidance as an input keeps it
            ignore_guidance(network)
        parts = self.stock.components | {"unet": network, "scheduler": scheduler}
        unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionPipeline(**(parts | unused))
