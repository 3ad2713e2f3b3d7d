"""Stable Diffusion 1.x and 2.x: a latent UNet with text, predicting epsilon or v."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor
from typing_extensions import Self

import teachers.pocket
from teachers.denoiser import Condition, Denoiser
from teachers.few_step import (
    add_guidance_embedding,
    consistency_scheduler,
    guidance_embedding,
    guidance_width,
    ignore_guidance,
    pin_clock,
)
from teachers.teacher import Teacher, load_pipeline, local_or_hub
from teachers.trigflow import VariancePreserving


def variance_preserving(scheduler: Any, sigma_data: float) -> VariancePreserving:
    """The path of a pipeline's scheduler, whichever solver it is: the training schedule that its config describes."""
    return VariancePreserving(DDPMScheduler.from_config(scheduler.config).alphas_cumprod, sigma_data)


class StableDiffusion(Teacher):
    """`StableDiffusionPipeline`; `path` may be "pocket", the pipeline that ships with this project."""

    guided: ClassVar[bool] = True

    def __init__(self, pipeline: StableDiffusionPipeline, sigma_data: float = 1.0) -> None:
        self.stock = pipeline
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            module.requires_grad_(False).eval()
        scheduler = pipeline.scheduler
        self.denoiser = Denoiser(
            pipeline.unet, variance_preserving(scheduler, sigma_data), scheduler.config.prediction_type
        ).eval()
        unet = pipeline.unet.config
        self.shape = (unet.in_channels, unet.sample_size, unet.sample_size)
        factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        self.image_size = (unet.sample_size * factor, unet.sample_size * factor)
        self._scale = pipeline.vae.config.scaling_factor
        self._shift = pipeline.vae.config.shift_factor or 0.0

    @classmethod
    def locate(cls, path: str) -> str:
        return str(teachers.pocket.PIPELINE) if path == "pocket" else local_or_hub(path)

    @classmethod
    def load(cls, path: str, device: torch.device, dtype: torch.dtype = torch.float32, sigma_data: float = 1.0) -> Self:
        stock = load_pipeline(StableDiffusionPipeline, cls.locate(path), dtype=dtype, safety_checker=None)
        return cls(stock.to(device), sigma_data)

    def encode(self, images: Tensor) -> Tensor:
        vae = self.stock.vae
        mean = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mean.float()
        return (mean - self._shift) * self._scale / self.denoiser.path.sigma_data

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.stock.vae
        native = latents * self.denoiser.path.sigma_data / self._scale + self._shift
        return vae.decode(native.to(vae.device, vae.dtype), return_dict=False)[0].float()

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

    def pipeline(self, student: Denoiser, times: Sequence[float]) -> DiffusionPipeline:
        unet = pin_clock(student, times)
        if not student.defaults:
            ignore_guidance(unet)
        stock = self.stock
        return StableDiffusionPipeline(
            vae=stock.vae,
            text_encoder=stock.text_encoder,
            tokenizer=stock.tokenizer,
            unet=unet,
            scheduler=consistency_scheduler(student, times),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def calls(self, num_steps: int) -> dict[str, Any]:
        return {"num_inference_steps": num_steps, "guidance_scale": 1.0}
