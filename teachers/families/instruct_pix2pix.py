"""InstructPix2Pix (Brooks et al. 2022, arXiv 2211.09800): Stable Diffusion with a source image and two scales."""

from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from torch import Tensor

from teachers.core.denoiser import Condition, Denoiser
from teachers.core.guided import concatenate
from teachers.core.trigflow import expand
from teachers.families.source_unet import SourceUNet
from teachers.loading.source import Pipelines

IMAGE_GUIDANCE = 1.5  # the default of the pipeline's call


class InstructPix2Pix(SourceUNet):
    """`StableDiffusionInstructPix2PixPipeline`, whose UNet receives the latents of the source image, not scaled."""

    pipelines: ClassVar[Pipelines] = (StableDiffusionInstructPix2PixPipeline,)
    source_channels: ClassVar[int] = 4
    ignores_guidance: ClassVar[bool] = False
    image_guidance: float | None = IMAGE_GUIDANCE

    def __init__(self, pipeline: Any, sigma_data: float = 1.0) -> None:
        if (width := pipeline.unet.config.time_cond_proj_dim) is not None:
            raise ValueError(
                f"time_cond_proj_dim of the unet must be None for an {type(pipeline).__name__}, got {width}"
            )
        super().__init__(pipeline, sigma_data)

    def source_latents(self, sources: Tensor) -> Tensor:
        return self._without_overflow(self._mean, sources)

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition, guidance: float | Tensor = 1.0) -> Tensor:
        """The velocity guided towards the prompt and the source image, as the pipeline computes it.

        It is none + s_T (full - source) + s_I (source - none) (equation 3 of the paper), with the outputs `full` for
        prompt and source image, `source` without the prompt, and `none` without both; s_T is `guidance` and s_I is
        `image_guidance`. With guidance 1.0 the pipeline applies neither scale.

        Args:
            x_t: Noisy latents of unit variance, (B, *shape).
            t: Angles in radians, (B,).
            cond: The network's condition, B rows.
            guidance: One scale, or one for each sample (B,).

        Returns:
            The velocity, shape and dtype of `x_t`.
        """
        if not isinstance(guidance, Tensor) and guidance == 1.0:
            return super().velocity(x_t, t, cond)
        assert self.image_guidance is not None
        unprompted = self.null_condition(cond)
        blank = {**unprompted, **{key: torch.zeros_like(unprompted[key]) for key in self.source_entries}}
        three = concatenate(cond, unprompted, blank)
        with self._on_device():
            full, source, none = self.denoiser.velocity(torch.cat([x_t] * 3), torch.cat([t] * 3), three).chunk(3)
        if isinstance(guidance, Tensor):
            guidance = expand(guidance, x_t).to(x_t.dtype)
        return none + guidance * (full - source) + self.image_guidance * (source - none)

    def embed_guidance(self, student: Denoiser, guidance: float) -> None:
        raise ValueError(
            f"method.guidances must be empty: {type(self.stock).__name__} passes no guidance scale to its unet"
        )
