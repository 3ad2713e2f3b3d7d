"""`SourceUNet`: the common code of Stable Diffusion's pipelines whose UNet also receives a source image."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from teachers.core.denoiser import Condition, default_call
from teachers.families.stable_diffusion import StableDiffusion
from teachers.networks.storage import in_float32

SOURCE = "source_latents"  # the entry of the condition with the UNet's further channels


class SourceUNet(StableDiffusion):
    """A pipeline whose UNet receives channels of a source image after those of the noisy latents.

    The condition has these channels as "source_latents", (B, source_channels, H, W) of native latents; those of
    `condition`, without source images, are zero.
    """

    source: ClassVar[tuple[str, ...]] = ("image",)
    source_entries: ClassVar[tuple[str, ...]] = (SOURCE,)

    @abstractmethod
    def source_latents(self, sources: Tensor) -> Tensor:
        """The UNet's further channels (B, source_channels, H, W) for source images (B, *source_shape)."""

    @staticmethod
    def call(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        rest = {key: value for key, value in cond.items() if key != SOURCE}
        return default_call(network, torch.cat([sample, cond[SOURCE]], dim=1), timestep, rest)

    def unpack(self, native: Tensor) -> Tensor:
        return native[:, : self.shape[0]]

    def condition(self, prompts: Sequence[str]) -> Condition:
        pipe = self.text_pipeline()
        with torch.no_grad():  # some of these pipelines have no public function that encodes prompts
            embedding, _ = StableDiffusionPipeline.encode_prompt(
                pipe, list(prompts), self.device, 1, do_classifier_free_guidance=False
            )
        blank = torch.zeros(len(prompts), self.source_channels, *self.shape[1:], device=embedding.device)
        return {"encoder_hidden_states": embedding.float(), SOURCE: blank}

    def source_condition(self, prompts: Sequence[str], sources: Tensor | None) -> Condition:
        return self._with_source(self.condition(prompts), sources)

    def exact_source_condition(self, prompts: Sequence[str], sources: Tensor | None) -> Condition:
        cond = self.exact_condition(prompts)
        with in_float32([self.stock.vae]):
            return self._with_source(cond, sources)

    def _with_source(self, cond: Condition, sources: Tensor | None) -> Condition:
        if sources is None:
            return cond
        for part in self._vae_encoder():
            part.to(self.device)
        with torch.no_grad():
            return {**cond, SOURCE: self.source_latents(sources.to(self.device))}
