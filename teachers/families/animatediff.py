"""AnimateDiff: Stable Diffusion 1.5 with motion layers, a UNet of clips on an autoencoder of images."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AnimateDiffPipeline
from torch import Tensor

from teachers.core.denoiser import Condition, Denoiser
from teachers.families.latent_video import LatentVideo
from teachers.loading.source import Pipelines

UNUSED = ("time_cond_proj_dim", "addition_embed_type", "encoder_hid_dim_type")  # keys of the UNet's config


class AnimateDiff(LatentVideo):
    """`AnimateDiffPipeline` with a `UNetMotionModel`, as `save_pretrained` of the pipeline writes it.

    Raises:
        ValueError: If the UNet embeds a guidance scale, an image, or the conditions of Stable Diffusion XL.
    """

    pipelines: ClassVar[Pipelines] = (AnimateDiffPipeline,)
    network: ClassVar[str] = "unet"
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"cross_attention_dim": ("text_encoder",)}
    options: ClassVar[dict[str, Any]] = {"feature_extractor": None, "image_encoder": None}
    takes_flow: ClassVar[bool] = False
    usual_rate: ClassVar[float] = 8.0

    def __init__(
        self, pipeline: AnimateDiffPipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        for key in UNUSED:
            if pipeline.unet.config.get(key) is not None:
                raise ValueError(
                    f"{key} of the unet must be None for an AnimateDiffPipeline, got {pipeline.unet.config[key]!r}"
                )
        super().__init__(pipeline, sigma_data, size)

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network with the embedding of the prompt once for each frame."""
        text = cond["encoder_hidden_states"].repeat_interleave(sample.shape[2], dim=0)
        output: Tensor = network(sample, timestep, encoder_hidden_states=text, return_dict=False)[0]
        return output

    def default_size(self) -> dict[str, float]:
        side = self.stock.unet.config.sample_size * self.compression()
        return super().default_size() | {"height": side, "width": side}

    def patch(self) -> tuple[int, int]:
        return 1, 1

    def compression(self) -> int:
        return int(self.stock.vae_scale_factor)

    def time_compression(self) -> int:
        return 1

    def condition(self, prompts: Sequence[str]) -> Condition:
        with torch.no_grad():
            text, _ = self.text_pipeline().encode_prompt(
                list(prompts), self.device, 1, do_classifier_free_guidance=False
            )
        return {"encoder_hidden_states": text.float()}

    def _mean(self, images: Tensor) -> Tensor:
        return super()._mean(images.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(images), -1)).transpose(1, 2)

    def _image(self, native: Tensor) -> Tensor:
        return super()._image(native.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(native), -1)).transpose(1, 2)

    def parts(self, student: Denoiser, network: Any, scheduler: Any) -> dict[str, Any]:
        return super().parts(student, network, scheduler) | self.options
