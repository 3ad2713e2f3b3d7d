"""Krea 2: a rectified-flow transformer of image and text tokens in one sequence, with layers of Qwen3-VL."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import Krea2Pipeline
from torch import Tensor

from teachers.core.denoiser import Condition, Denoiser, Prediction
from teachers.core.noise_path import NoisePath
from teachers.core.schedule import schedule
from teachers.families.added_guidance import AddedGuidance
from teachers.families.clip_autoencoder import ClipAutoencoder
from teachers.families.flow_transformer import UNIT, check_unit
from teachers.families.packing import pack, positions, unpack
from teachers.loading.source import Pipelines

LENGTH = 512  # tokens of a prompt: the default of the pipeline's call
TEXT, MASK = "encoder_hidden_states", "encoder_attention_mask"  # entries of the condition
DISTILLED_MU = 1.15  # log of the shift in a pipeline that `is_distilled`, whatever the size
SETTINGS = ("text_encoder_select_layers", "is_distilled", "patch_size")  # of the pipeline, besides its components


def sample_tokens(hidden: Tensor, sample: Tensor, cond: Condition) -> Tensor:
    """The tokens (B, N, C) of the samples (B, C, H, W) among those of a block, which follow those of the prompts."""
    return hidden[:, cond[TEXT].shape[1] :]


class Krea2(AddedGuidance, ClipAutoencoder):
    """`Krea2Pipeline`. The condition has several layers of the text encoder: 60 MiB a prompt for the published model.

    A pipeline that `is_distilled` has its guidance in the weights, so its `teacher.guidance` is 1. It was distilled for
    eight steps of its solver, so `teacher.num_steps` should be 8, and the base model is the better teacher of
    trajectories.

    Raises:
        ValueError: If the pipeline's patches are not of 2 x 2 latent pixels, or the transformer takes another number of
            layers of the text encoder than the pipeline selects.
    """

    pipelines: ClassVar[Pipelines] = (Krea2Pipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_hidden_dim": ("text_encoder",)}

    def __init__(
        self, pipeline: Krea2Pipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        if pipeline.config.patch_size != self.patch:
            raise ValueError(
                f"patch_size of a Krea2Pipeline must be {self.patch}, got {pipeline.config.patch_size}: patches of "
                "other sizes are not supported"
            )
        layers, selected = pipeline.transformer.config.num_text_layers, len(pipeline.config.text_encoder_select_layers)
        if layers != selected:
            raise ValueError(
                f"num_text_layers of the transformer must be the number of text_encoder_select_layers of the pipeline, "
                f"{selected}, got {layers}"
            )
        super().__init__(pipeline, sigma_data, size)
        check_unit(self)
        self.denoiser.sample_tokens = sample_tokens

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network on tokens (B, H W / 4, 4 C), the positions of all tokens, and timesteps in [0, 1]."""
        height, width = sample.shape[2:]
        text = torch.zeros(cond[TEXT].shape[1], 3, dtype=torch.long)
        output: Tensor = network(
            hidden_states=pack(sample),
            timestep=timestep / UNIT,
            **cond,
            position_ids=torch.cat([text, positions(height // 2, width // 2)]).to(sample.device, torch.float32),
            return_dict=False,
        )[0]
        return unpack(output, height, width)

    def default_side(self) -> int:
        return int(inspect.signature(Krea2Pipeline.__call__).parameters["height"].default)

    def noise_path(self, sigma_data: float) -> tuple[NoisePath, Prediction]:
        scheduler = self.stock.scheduler
        if self.stock.config.is_distilled and "base_shift" in scheduler.config:
            scheduler = type(scheduler).from_config(scheduler.config, base_shift=DISTILLED_MU, max_shift=DISTILLED_MU)
        return schedule(scheduler, sigma_data, self.tokens(), variance_preserving=False)

    def condition(self, prompts: Sequence[str]) -> Condition:
        if self.device.type == "meta":
            return {key: value.expand(len(prompts), *value.shape[1:]) for key, value in self.meta_condition().items()}
        with torch.no_grad():
            text, mask = self.text_pipeline().encode_prompt(
                list(prompts), device=self.device, max_sequence_length=LENGTH
            )
        return {TEXT: text.float(), MASK: mask}

    def meta_condition(self) -> Condition:
        config = self.stock.transformer.config
        text = torch.empty(1, LENGTH, config.num_text_layers, config.text_hidden_dim, device="meta")
        return {TEXT: text, MASK: torch.empty(1, LENGTH, dtype=torch.bool, device="meta")}

    def parts(self, student: Denoiser, network: Any, scheduler: Any) -> dict[str, Any]:
        return super().parts(student, network, scheduler) | {name: self.stock.config[name] for name in SETTINGS}
