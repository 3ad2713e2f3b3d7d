"""Sana: a rectified-flow transformer with linear attention, a deep-compression autoencoder and a Gemma text encoder."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import SanaPipeline

from teachers.core.denoiser import Condition
from teachers.families.latent import LatentTeacher
from teachers.loading.source import Pipelines

DEFAULTS = inspect.signature(SanaPipeline.__call__).parameters
BINNED = {128: 4096, 64: 2048, 32: 1024, 16: 512}  # pixels of a square image by the transformer's sample size


class Sana(LatentTeacher):
    """`SanaPipeline`. Prompts follow the pipeline's default instruction to the text encoder.

    Raises:
        ValueError: If the pipeline rescales its timesteps, as few-step students do.
    """

    pipelines: ClassVar[Pipelines] = (SanaPipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"caption_channels": ("text_encoder",)}
    refuses_steps: ClassVar[bool] = False

    def __init__(self, pipeline: SanaPipeline, sigma_data: float = 1.0) -> None:
        super().__init__(pipeline, sigma_data)
        if pipeline.transformer.config.timestep_scale != 1.0:
            raise ValueError(
                f"timestep_scale of a Sana teacher must be 1, got {pipeline.transformer.config.timestep_scale}; "
                "few-step students rescale their timesteps: use the teacher instead"
            )

    def size_call(self) -> dict[str, Any]:
        height, width = self.image_size
        call = {} if height == width == DEFAULTS["height"].default else {"height": height, "width": width}
        return call if BINNED.get(self.shape[1]) == height else call | {"use_resolution_binning": False}

    def condition(self, prompts: Sequence[str]) -> Condition:
        return self._encode(prompts, DEFAULTS["complex_human_instruction"].default)

    def encode_null_condition(self) -> Condition:
        return self._encode([""], None)

    def encode_negative_prompt(self, prompt: str) -> Condition:
        return self._encode([prompt], None)

    def _encode(self, prompts: Sequence[str], instruction: list[str] | None) -> Condition:
        with torch.no_grad():
            text, mask, _, _ = self.text_pipeline().encode_prompt(
                list(prompts), False, device=self.device, complex_human_instruction=instruction
            )
        return {"encoder_hidden_states": text.float(), "encoder_attention_mask": mask}
