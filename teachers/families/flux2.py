"""Flux.2: a rectified-flow transformer of normalised patches, with Mistral 3 ("dev") or Qwen3 ("klein")."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from teachers.core.denoiser import Condition, Denoiser, Prediction
from teachers.core.noise_path import NoisePath
from teachers.core.teacher import Teacher
from teachers.core.trigflow import Flow
from teachers.families.embedded_guidance import EmbeddedGuidance, default_guidance
from teachers.families.packing import positions
from teachers.families.patch_autoencoder import PatchAutoencoder
from teachers.loading.source import Pipelines

DEFAULT_GUIDANCE = default_guidance(Flux2Pipeline)
LENGTH = 512  # tokens of a prompt: the default of the pipeline's call
LAYERS = 3  # of the text encoder, whose outputs are joined
USUAL_STEPS = 50  # the default of the pipeline's call; its shift depends on it


class Flux2(EmbeddedGuidance, PatchAutoencoder):
    """`Flux2Pipeline` and `Flux2KleinPipeline`.

    "dev" embeds the guidance scale and needs one evaluation. A student of one guidance scale receives the pipeline's
    default in training and in the call of its export: its embedding has no bias that could make the scale constant.
    "klein" has classifier-free guidance against the empty prompt, and none if it `is_distilled`, as its exports are.
    """

    pipelines: ClassVar[Pipelines] = (Flux2Pipeline, Flux2KleinPipeline)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"joint_attention_dim": ("text_encoder",) * LAYERS}
    ignores_guidance: ClassVar[bool] = False

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network on tokens (B, H W, C), their positions, and timesteps in [0, 1]."""
        rows, (height, width) = len(sample), sample.shape[2:]
        if network.config.guidance_embeds and "guidance" not in cond:
            cond = {**cond, "guidance": torch.full_like(timestep, DEFAULT_GUIDANCE)}
        image = F.pad(positions(height, width), (0, 1))
        text = F.pad(torch.arange(cond["encoder_hidden_states"].shape[1])[:, None], (3, 0))
        output: Tensor = network(
            sample.flatten(2).mT,
            timestep=timestep / 1000,
            **cond,
            img_ids=image.to(sample.device).expand(rows, -1, -1),
            txt_ids=text.to(sample.device).expand(rows, -1, -1),
            return_dict=False,
        )[0]
        return output.mT.unflatten(2, (height, width))

    def noise_path(self, sigma_data: float) -> tuple[NoisePath, Prediction]:
        path, prediction = super().noise_path(sigma_data)
        config = self.stock.scheduler.config
        if config.get("use_dynamic_shifting"):
            mu = compute_empirical_mu(self.tokens(), USUAL_STEPS)
            shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
            path = Flow(config["num_train_timesteps"], sigma_data, shift, config.get("shift_terminal") or None)
        return path, prediction

    def unpack(self, native: Tensor) -> Tensor:
        return native.mT.unflatten(2, self.shape[1:]) if native.ndim == 3 else native

    @property
    def embeds_guidance(self) -> bool:
        return super().embeds_guidance and isinstance(self.stock, Flux2Pipeline)

    @property
    def has_second_evaluation(self) -> bool:
        """Whether the pipeline has classifier-free guidance."""
        return isinstance(self.stock, Flux2KleinPipeline) and not self.stock.config.is_distilled

    @classmethod
    def check_negative_prompt(cls) -> None:
        super(EmbeddedGuidance, cls).check_negative_prompt()  # no pipeline takes one

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition, guidance: float | Tensor = 1.0) -> Tensor:
        """The velocity at an embedded guidance scale, with classifier-free guidance, or without any."""
        if self.has_second_evaluation:
            return Teacher.velocity(self, x_t, t, cond, guidance)
        return super().velocity(x_t, t, cond, guidance)

    def condition(self, prompts: Sequence[str]) -> Condition:
        if self.device.type == "meta":
            return {key: value.expand(len(prompts), *value.shape[1:]) for key, value in self.meta_condition().items()}
        with torch.no_grad():
            text, _ = self.text_pipeline().encode_prompt(list(prompts), device=self.device)
        return {"encoder_hidden_states": text.float()}

    def meta_condition(self) -> Condition:
        width = self.stock.transformer.config.joint_attention_dim
        return {"encoder_hidden_states": torch.empty(1, LENGTH, width, device="meta")}

    def calls(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        scale = {"guidance_scale": self.default_guidance()} if self.embeds_guidance else {}
        return super().calls(num_steps, times) | scale

    def fix_exported_guidance(self, network: Any) -> None:
        return

    def parts(self, student: Denoiser, network: Any, scheduler: Any) -> dict[str, Any]:
        kept = {"is_distilled": True} if isinstance(self.stock, Flux2KleinPipeline) else {}
        return super().parts(student, network, scheduler) | kept
