"""`EmbeddedGuidance`: the common code of transformers that receive the guidance scale as an input."""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from teachers.core.denoiser import Condition, Denoiser
from teachers.families.latent import LatentTeacher


def default_guidance(kind: type[Any]) -> float:
    """The default of `guidance_scale` in a pipeline's call."""
    return float(inspect.signature(kind.__call__).parameters["guidance_scale"].default)


class EmbeddedGuidance(LatentTeacher):
    """A pipeline whose transformer may embed the guidance scale, which is then evaluated once.

    A student that learns one guidance scale receives the pipeline's default in training. In its export the embedding is
    constant at that value, so `guidance_scale` of the call has no effect.
    """

    ignores_guidance: ClassVar[bool] = True

    @classmethod
    def check_negative_prompt(cls) -> None:
        raise ValueError(
            f"teacher.negative_prompt must be null: networks of the family {cls.__name__} receive the guidance scale "
            "as an input and are evaluated only once"
        )

    @property
    def embeds_guidance(self) -> bool:
        return bool(self.stock.transformer.config.guidance_embeds)

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition, guidance: float | Tensor = 1.0) -> Tensor:
        """The velocity at an embedded guidance scale, in one evaluation. Networks without the input ignore it."""
        if self.embeds_guidance:
            scale = guidance if isinstance(guidance, Tensor) else torch.full_like(t, guidance)
            cond = {**cond, "guidance": scale.float()}
        with self._on_device():
            return self.denoiser.velocity(x_t, t, cond)

    def embed_guidance(self, student: Denoiser, guidance: float) -> None:
        if not self.embeds_guidance:
            raise ValueError(
                f"method.guidances must be empty: this {type(self).__name__} has no input for the guidance scale"
            )
        student.defaults = self.guidance_condition(student, torch.tensor([guidance]))
        student.guidance_input = True

    def guidance_condition(self, student: Denoiser, guidance: Tensor) -> Condition:
        return {"guidance": guidance.float()}

    def lora_call(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        scale = {"guidance_scale": self.default_guidance()} if self.embeds_guidance else {}
        return super().lora_call(num_steps, times) | scale

    def default_guidance(self) -> float:
        """The scale that a student of one guidance scale receives in training."""
        return default_guidance(type(self.stock))

    def parts(self, student: Denoiser, network: Any, scheduler: Any) -> dict[str, Any]:
        if network.config.guidance_embeds and not student.guidance_input:
            self.fix_exported_guidance(network)
        return super().parts(student, network, scheduler)

    @torch.no_grad()
    def fix_exported_guidance(self, network: Any) -> None:
        """Give a network to export one embedding for all guidance scales, in place."""
        embed, layer = network.time_text_embed, network.time_text_embed.guidance_embedder.linear_2
        scale = self.default_guidance() * 1000
        features = embed.time_proj(torch.tensor([scale], device=layer.weight.device))
        constant = embed.guidance_embedder(features.to(layer.weight.dtype))[0]
        layer.weight.zero_()
        layer.bias.copy_(constant)
