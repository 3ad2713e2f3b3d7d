"""Stable Diffusion 3 and 3.5: a rectified-flow transformer with three text encoders, of which T5 is optional."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusion3Pipeline

from teachers.core.denoiser import Condition
from teachers.families.latent import LatentTeacher
from teachers.loading.source import Pipelines


class StableDiffusion3(LatentTeacher):
    """`StableDiffusion3Pipeline`."""

    pipelines: ClassVar[Pipelines] = (StableDiffusion3Pipeline,)
    statistics: ClassVar[tuple[str, ...]] = ("scaling_factor", "shift_factor")
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"joint_attention_dim": ("text_encoder_3",)}
    refuses_steps: ClassVar[bool] = False

    def _load_text_pipeline(self) -> Any:
        pipeline = super()._load_text_pipeline()
        # Without T5 the pipeline pads with zeros of the transformer's width.
        pipeline.transformer = SimpleNamespace(config=self.stock.transformer.config)
        return pipeline

    def condition(self, prompts: Sequence[str]) -> Condition:
        with torch.no_grad():
            text, _, pooled, _ = self.text_pipeline().encode_prompt(
                list(prompts), None, None, device=self.device, do_classifier_free_guidance=False
            )
        return {"encoder_hidden_states": text.float(), "pooled_projections": pooled.float()}
