"""Stable Diffusion inpainting: a latent UNet that also receives a mask and the latents of the masked image."""

from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionInpaintPipeline
from torch import Tensor
from torch.nn.functional import interpolate

from teachers.families.source_unet import SourceUNet
from teachers.loading.source import Pipelines


class Inpainting(SourceUNet):
    """`StableDiffusionInpaintPipeline` with a UNet of 9 input channels.

    The masked image is encoded to the mean of the autoencoder's distribution, of which the pipeline draws a sample.
    """

    pipelines: ClassVar[Pipelines] = (StableDiffusionInpaintPipeline,)
    source: ClassVar[tuple[str, ...]] = ("image", "mask_image")
    source_channels: ClassVar[int] = 5

    def source_latents(self, sources: Tensor) -> Tensor:
        image, mask = sources[:, :3], sources[:, 3:]
        masked = self.encode(image * (mask < 0.5)) * self.denoiser.path.sigma_data
        return torch.cat([interpolate(mask, masked.shape[-2:]), masked], dim=1)

    def exact_source_call(self, sources: Tensor) -> dict[str, Any]:
        return {"masked_image_latents": self.exact_source_latents(sources)[:, 1:]}
