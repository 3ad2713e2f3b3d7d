"""`SourceUNet`: the common code of Stable Diffusion's pipelines whose UNet also receives a source image."""

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from teachers.core.denoiser import Condition, default_call
from teachers.families.source_images import SOURCE, SourceImages
from teachers.families.stable_diffusion import StableDiffusion


class SourceUNet(SourceImages, StableDiffusion):
    """A pipeline whose UNet receives `source_channels` channels of a source image after those of the noisy latents."""

    @staticmethod
    def call(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        rest = {key: value for key, value in cond.items() if key != SOURCE}
        return default_call(network, torch.cat([sample, cond[SOURCE]], dim=1), timestep, rest)

    def unpack(self, native: Tensor) -> Tensor:
        return native[:, : self.shape[0]]

    def text_condition(self, prompts: Sequence[str]) -> Condition:
        pipe = self.text_pipeline()
        with torch.no_grad():  # some of these pipelines have no public function that encodes prompts
            embedding, _ = StableDiffusionPipeline.encode_prompt(
                pipe, list(prompts), self.device, 1, do_classifier_free_guidance=False
            )
        return {"encoder_hidden_states": embedding.float()}
