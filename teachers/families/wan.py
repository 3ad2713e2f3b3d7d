"""Wan 2.1 and 2.2: rectified-flow transformers of clips with a UMT5 text encoder.

The A14B model of version 2.2 consists of two transformers: one for high noise levels, one for low ones.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import WanPipeline
from torch import Tensor, nn

from teachers.core.denoiser import Call, Condition, Denoiser
from teachers.families.latent_video import LatentVideo
from teachers.loading.source import Pipelines
from teachers.networks.experts import Experts

EXPERTS = ("transformer", "transformer_2")


def call_experts(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition, boundary: float) -> Tensor:
    """Call `Experts` with the boundary between them, in the unit of the student's timesteps."""
    output: Tensor = network(sample, timestep, boundary=boundary, **cond)
    return output


class Wan(LatentVideo):
    """`WanPipeline`. Prompts are padded with zeros, without a mask, so `max_sequence_length` changes the samples.

    Its call takes neither sigmas nor timesteps, so students have one or two steps. A student of two transformers
    consists of two as well.

    Attributes:
        boundary: The noise level from which the first of two transformers is called; None for one transformer.

    Raises:
        ValueError: If the number of transformers does not fit the pipeline's boundary_ratio.
    """

    pipelines: ClassVar[Pipelines] = (WanPipeline,)
    statistics: ClassVar[tuple[str, ...]] = ("latents_mean", "latents_std")
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_dim": ("text_encoder",)}
    size_keys: ClassVar[tuple[str, ...]] = (*LatentVideo.size_keys, "max_sequence_length")
    takes_variance_preserving: ClassVar[bool] = False
    refuses_steps: ClassVar[bool] = False

    def __init__(self, pipeline: WanPipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None) -> None:
        self.boundary: float | None = pipeline.config.boundary_ratio
        experts = [name for name in EXPERTS if getattr(pipeline, name) is not None]
        if len(experts) != 1 + (self.boundary is not None):
            raise ValueError(
                f"a WanPipeline must have two transformers if it has a boundary_ratio, else one, got "
                f"{' and '.join(experts) or 'none'} with boundary_ratio {self.boundary}"
            )
        super().__init__(pipeline, sigma_data, size)

    @staticmethod
    def call(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        output: Tensor = network(sample, timestep, **cond, return_dict=False)[0]
        return output

    def network_call(self) -> Call:
        if self.boundary is None:
            return self.call
        return partial(call_experts, boundary=self.boundary * self.stock.scheduler.config.num_train_timesteps)

    def denoising_network(self) -> nn.Module:
        if self.boundary is None:
            return super().denoising_network()
        return Experts(self.stock.transformer, self.stock.transformer_2)

    def refit_time_embedding(self, student: Denoiser, time_scale: float) -> None:
        super().refit_time_embedding(student, time_scale)
        if self.boundary is not None:
            native = torch.tensor([self.boundary * student.path.num_train_timesteps], dtype=torch.float64)
            student.call = partial(call_experts, boundary=time_scale * student.path.angle(native).item())

    def side_unit(self) -> int:
        return math.lcm(16, super().side_unit())

    def latent_channels(self) -> int:
        return int(self.stock.vae.config.z_dim)

    def condition(self, prompts: Sequence[str]) -> Condition:
        length = int(self.size["max_sequence_length"])
        if self.device.type == "meta":  # the pipeline cuts embeddings at the number of tokens, a value
            width = self.stock.transformer.config.text_dim
            return {"encoder_hidden_states": torch.empty(len(prompts), length, width, device=self.device)}
        with torch.no_grad():
            text, _ = self.text_pipeline().encode_prompt(
                list(prompts),
                do_classifier_free_guidance=False,
                max_sequence_length=length,
                device=self.device,
            )
        return {"encoder_hidden_states": text.float()}

    def prompt_limit(self) -> tuple[Any, int] | None:
        return self.text_pipeline().tokenizer, int(self.size["max_sequence_length"])

    def meta_condition(self) -> Condition:
        length, width = int(self.size["max_sequence_length"]), self.stock.transformer.config.text_dim
        return {"encoder_hidden_states": torch.empty(1, length, width, device="meta")}

    def save_lora(self, student: Denoiser, times: Sequence[float], folder: Path) -> bool:
        return self.boundary is None and super().save_lora(student, times, folder)  # a file has one transformer

    def parts(self, student: Denoiser, network: Any, scheduler: Any) -> dict[str, Any]:
        # the 5B model of version 2.2 receives one timestep for each token
        kept = {"expand_timesteps": self.stock.config.expand_timesteps, "boundary_ratio": self.boundary}
        if isinstance(network, Experts):
            kept["transformer_2"] = network.low
            network = network.high
        return super().parts(student, network, scheduler) | kept
