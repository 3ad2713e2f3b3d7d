"""PixArt-Alpha and PixArt-Sigma: a diffusion transformer with a T5 text encoder; the learned variance is ignored."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline
from torch import Tensor, nn

from teachers.core.denoiser import Condition
from teachers.families.latent import LatentTeacher
from teachers.loading.source import Pipelines
from teachers.networks.storage import correct_patch_embedding

BINNED = {128: 1024, 64: 512, 32: 256}  # pixels of a square image by the transformer's sample size
SIZE_CONDITION = 128  # the sample size at which the image size is part of the condition


class PixArt(LatentTeacher):
    """`PixArtAlphaPipeline` and `PixArtSigmaPipeline`."""

    pipelines: ClassVar[Pipelines] = (PixArtAlphaPipeline, PixArtSigmaPipeline)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"caption_channels": ("text_encoder",)}
    takes_flow: ClassVar[bool] = False

    @staticmethod
    def call(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        added = {"resolution": cond.get("resolution"), "aspect_ratio": cond.get("aspect_ratio")}
        config: Any = network.config
        with correct_patch_embedding(sample, config.patch_size):
            output: Tensor = network(
                sample,
                timestep=timestep,
                encoder_hidden_states=cond["encoder_hidden_states"],
                encoder_attention_mask=cond["encoder_attention_mask"],
                added_cond_kwargs=added,
                return_dict=False,
            )[0]
        return output

    def size_call(self) -> dict[str, Any]:
        default = BINNED.get(self.shape[1]) == self.image_size[0]
        return {} if default else {"use_resolution_binning": False}

    def condition(self, prompts: Sequence[str]) -> Condition:
        with torch.no_grad():
            text, mask, _, _ = self.text_pipeline().encode_prompt(
                list(prompts), False, device=self.device, clean_caption=True
            )
        cond = {"encoder_hidden_states": text.float(), "encoder_attention_mask": mask}
        if self.stock.transformer.config.sample_size == SIZE_CONDITION:
            height, width = self.image_size
            size = torch.tensor([[height, width]], dtype=torch.float32, device=text.device)
            cond["resolution"] = size.repeat(len(prompts), 1)
            cond["aspect_ratio"] = (size[:, :1] / size[:, 1:]).repeat(len(prompts), 1)
        return cond
