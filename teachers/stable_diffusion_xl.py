"""Stable Diffusion XL: two text encoders, their pooled embedding, and the picture's size told to the network."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from teachers.denoiser import Condition
from teachers.few_step import ignore_guidance
from teachers.latent import LatentTeacher
from teachers.teacher import Pipelines


class StableDiffusionXL(LatentTeacher):
    """`StableDiffusionXLPipeline`, without a refiner. Pictures count as uncropped originals of the size drawn."""

    pipelines: ClassVar[Pipelines] = (StableDiffusionXLPipeline,)
    network: ClassVar[str] = "unet"
    ignores_guidance: ClassVar[bool] = True

    @staticmethod
    def call(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        added = {"text_embeds": cond["text_embeds"], "time_ids": cond["time_ids"]}
        text = cond["encoder_hidden_states"]
        return network(
            sample, timestep=timestep, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False
        )[0]

    def condition(self, prompts: Sequence[str]) -> Condition:
        with torch.no_grad():
            text, _, pooled, _ = self.stock.encode_prompt(
                list(prompts), device=self.stock.device, do_classifier_free_guidance=False
            )
        size = [*self.image_size, 0, 0, *self.image_size]  # original size, crop's corner, target size
        ids = torch.tensor(size, dtype=torch.float32, device=text.device).expand(len(prompts), -1)
        return {"encoder_hidden_states": text.float(), "text_embeds": pooled.float(), "time_ids": ids.contiguous()}

    def empty(self) -> Condition:
        cond = self.condition([""])
        if not self.stock.config.force_zeros_for_empty_prompt:
            return cond
        return {key: value if key == "time_ids" else torch.zeros_like(value) for key, value in cond.items()}

    def assemble(self, network: nn.Module, scheduler: Any) -> DiffusionPipeline:
        ignore_guidance(network)
        parts = self.stock.components | {"unet": network, "scheduler": scheduler}
        zeros = self.stock.config.force_zeros_for_empty_prompt
        return StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=zeros)
