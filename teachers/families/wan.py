"""Wan 2.1, and the 5B model of Wan 2.2: a rectified-flow transformer of clips with a UMT5 text encoder."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import WanPipeline
from torch import Tensor, nn

from teachers.core.denoiser import Condition, Denoiser
from teachers.families.latent_video import LatentVideo
from teachers.loading.source import Pipelines


class Wan(LatentVideo):
    """`WanPipeline`. Prompts are padded with zeros, without a mask, so `max_sequence_length` changes the samples.

    Its call takes neither sigmas nor timesteps, so students have one or two steps.
    """

    pipelines: ClassVar[Pipelines] = (WanPipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_dim": ("text_encoder",)}
    size_keys: ClassVar[tuple[str, ...]] = (*LatentVideo.size_keys, "max_sequence_length")
    takes_variance_preserving: ClassVar[bool] = False
    refuses_steps: ClassVar[bool] = False
    side_unit: ClassVar[int] = 16

    @staticmethod
    def call(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        output: Tensor = network(sample, timestep, **cond, return_dict=False)[0]
        return output

    def latent_channels(self) -> int:
        return int(self.stock.vae.config.z_dim)

    def condition(self, prompts: Sequence[str]) -> Condition:
        with torch.no_grad():
            text, _ = self.text_pipeline().encode_prompt(
                list(prompts),
                do_classifier_free_guidance=False,
                max_sequence_length=int(self.size["max_sequence_length"]),
                device=self.device,
            )
        return {"encoder_hidden_states": text.float()}

    def parts(self, student: Denoiser, network: nn.Module, scheduler: Any) -> dict[str, Any]:
        # the 5B model of version 2.2 receives one timestep for each token
        kept = {"expand_timesteps": self.stock.config.expand_timesteps}
        return super().parts(student, network, scheduler) | kept
