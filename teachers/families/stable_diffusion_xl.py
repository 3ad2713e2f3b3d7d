"""Stable Diffusion XL: a latent UNet with two text encoders, a pooled embedding, and the image size as condition."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from teachers.core.denoiser import Condition, Denoiser
from teachers.families.latent_unet import LatentUNet
from teachers.loading.source import Pipelines


class StableDiffusionXL(LatentUNet):
    """`StableDiffusionXLPipeline` without a refiner. The size condition says that images are uncropped originals."""

    pipelines: ClassVar[Pipelines] = (StableDiffusionXLPipeline,)
    optional_statistics: ClassVar[tuple[str, ...]] = ("latents_mean", "latents_std")
    addition: ClassVar[str | None] = "text_time"
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"cross_attention_dim": ("text_encoder", "text_encoder_2")}

    @staticmethod
    def call(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        added = {"text_embeds": cond["text_embeds"], "time_ids": cond["time_ids"]}
        keywords = {key: value for key, value in cond.items() if key not in added}
        output: Tensor = network(sample, timestep=timestep, **keywords, added_cond_kwargs=added, return_dict=False)[0]
        return output

    def condition(self, prompts: Sequence[str]) -> Condition:
        with torch.no_grad():
            text, _, pooled, _ = self.text_pipeline().encode_prompt(
                list(prompts), device=self.device, do_classifier_free_guidance=False
            )
        size = [*self.image_size, 0, 0, *self.image_size]  # original size, crop corner, target size
        ids = torch.tensor(size, dtype=torch.float32, device=text.device).expand(len(prompts), -1)
        return {"encoder_hidden_states": text.float(), "text_embeds": pooled.float(), "time_ids": ids.contiguous()}

    def encode_null_condition(self) -> Condition:
        cond = self.condition([""])
        if not self.stock.config.force_zeros_for_empty_prompt:
            return cond
        return {key: value if key == "time_ids" else torch.zeros_like(value) for key, value in cond.items()}

    def size_call(self) -> dict[str, Any]:
        height, width = self.image_size  # the pipeline itself takes square sample sizes only
        return {} if isinstance(self.stock.unet.config.sample_size, int) else {"height": height, "width": width}

    def parts(self, student: Denoiser, network: nn.Module, scheduler: Any) -> dict[str, Any]:
        zeros = self.stock.config.force_zeros_for_empty_prompt
        return super().parts(student, network, scheduler) | {"force_zeros_for_empty_prompt": zeros}
