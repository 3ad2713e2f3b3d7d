"""HunyuanVideo 1.5: a rectified-flow transformer of clips with Qwen2.5-VL and ByT5; a guider has the guidance scale."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import ClassifierFreeGuidance, HunyuanVideo15Pipeline
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor

from teachers.core.denoiser import Condition, Denoiser
from teachers.families.latent_video import LatentVideo
from teachers.loading.corrections import correct_autoencoder
from teachers.loading.source import Pipelines

IMAGE_TOKENS = 729  # of the image that the pipeline does not have
ASPECT = (9, 16)  # the pipeline's default height : width
# Settings of a guider with which it is classifier-free guidance at every step, as `Teacher.velocity` computes it.
GUIDER: dict[str, Any] = {"guidance_rescale": 0.0, "use_original_formulation": False, "start": 0.0, "stop": 1.0}


class CastingEmbedding(TimestepEmbedding):
    """A timestep embedding that casts features to the precision of its weights.

    The network's own is called with features in the precision of the timestep, which stays in float32 here.
    """

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        output: Tensor = super().forward(sample.to(self.linear_1.bias.dtype), condition)
        return output


class HunyuanVideo15(LatentVideo):
    """`HunyuanVideo15Pipeline`. Its call takes no guidance scale; in exported pipelines the guider is disabled.

    Raises:
        ValueError: If the guider is not plain classifier-free guidance at every step, or the network is a mean flow.
    """

    pipelines: ClassVar[Pipelines] = (HunyuanVideo15Pipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text_embed_dim": ("text_encoder",),
        "text_embed_2_dim": ("text_encoder_2",),
    }
    passes_sigmas: ClassVar[bool] = True
    takes_variance_preserving: ClassVar[bool] = False
    refuses_steps: ClassVar[bool] = False
    stream: ClassVar[int] = 0
    constructor_reads: ClassVar[tuple[str, ...]] = ("vae",)
    usual_rate: ClassVar[float] = 24.0

    def __init__(
        self, pipeline: HunyuanVideo15Pipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        guider: Any = pipeline.guider
        if type(guider) is not ClassifierFreeGuidance:
            raise ValueError(f"the guider must be a ClassifierFreeGuidance, got {type(guider).__name__}")
        for key, value in GUIDER.items():
            if guider.config[key] != value:
                raise ValueError(f"{key} of the guider must be {value}, got {guider.config[key]}")
        if pipeline.transformer.config.use_meanflow:
            raise ValueError(
                "use_meanflow of the transformer must be False, got True: the pipeline passes one timestep"
            )
        correct_autoencoder(pipeline)
        pipeline.transformer.time_embed.timestep_embedder.__class__ = CastingEmbedding
        super().__init__(pipeline, sigma_data, size)

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network without an image: its latent, its mask and its features are zeros."""
        zeros = torch.zeros_like(sample)
        output: Tensor = network(
            torch.cat([sample, zeros, zeros[:, :1]], dim=1),
            timestep=timestep,
            **cond,
            image_embeds=zeros.new_zeros(len(sample), IMAGE_TOKENS, network.config.image_embed_dim),
            return_dict=False,
        )[0]
        return output

    def default_size(self) -> dict[str, float]:
        processor, side = self.stock.video_processor, self.stock.transformer.config.target_size
        height, width = processor.calculate_default_height_width(*ASPECT, side)
        return super().default_size() | {"height": height, "width": width}

    def patch(self) -> tuple[int, int]:
        config = self.stock.transformer.config
        return int(config.patch_size_t), int(config.patch_size)

    def latent_shape(self) -> tuple[int, ...]:
        return (self.latent_channels(), *super().latent_shape()[1:])

    def unpack(self, native: Tensor) -> Tensor:
        return native[:, : self.latent_channels()]

    def _check_channels(self) -> None:
        config, channels = self.stock.transformer.config, self.latent_channels()
        if (config.in_channels, config.out_channels) != (2 * channels + 1, channels):
            raise ValueError(
                f"in_channels and out_channels of the transformer must be {2 * channels + 1} and {channels} for the "
                f"{channels} latent channels of the vae, got {config.in_channels} and {config.out_channels}"
            )

    def condition(self, prompts: Sequence[str]) -> Condition:
        with torch.no_grad():
            text, mask, text_2, mask_2 = self.text_pipeline().encode_prompt(
                list(prompts), device=self.device, batch_size=len(prompts)
            )
        return {
            "encoder_hidden_states": text.float(),
            "encoder_attention_mask": mask.float(),
            "encoder_hidden_states_2": text_2.float(),
            "encoder_attention_mask_2": mask_2.float(),
        }

    def calls(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        call = super().calls(num_steps, times)
        return {name: value for name, value in call.items() if name != "guidance_scale"}

    def parts(self, student: Denoiser, network: Any, scheduler: Any) -> dict[str, Any]:
        return super().parts(student, network, scheduler) | {"guider": ClassifierFreeGuidance(1.0, enabled=False)}
