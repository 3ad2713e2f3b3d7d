"""`LatentUNet`: the common code of families with a latent UNet."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from teachers.core.denoiser import Condition, Denoiser
from teachers.core.time_embedding import (
    add_guidance_embedding,
    guidance_embedding,
    guidance_width,
    ignore_guidance,
)
from teachers.families.edm_exports import EdmExports
from teachers.families.latent import LatentTeacher
from teachers.networks.adapters import Adapted


class LatentUNet(EdmExports, LatentTeacher):
    """A pipeline with a latent UNet. Exports ignore `guidance_scale`, unless the student has an embedding for it.

    Attributes:
        addition: `addition_embed_type` of the UNet.
        fixed_guidance: The scale of `fix_guidance`; None for a network that does not embed the guidance scale.
    """

    network: ClassVar[str] = "unet"
    addition: ClassVar[str | None] = None
    takes_flow: ClassVar[bool] = False
    ignores_guidance: ClassVar[bool] = True
    fixed_guidance: float | None = None

    def __init__(self, pipeline: Any, sigma_data: float = 1.0) -> None:
        config = pipeline.unet.config
        for key, value in {
            "addition_embed_type": self.addition,
            "class_embed_type": None,
            "num_class_embeds": None,
        }.items():
            if config.get(key) != value:
                raise ValueError(
                    f"{key} of the unet must be {value} for a {type(pipeline).__name__}, got {config[key]!r}"
                )
        super().__init__(pipeline, sigma_data)

    @property
    def embeds_guidance(self) -> bool:
        return self.stock.unet.config.time_cond_proj_dim is not None

    def fix_guidance(self, guidance: float) -> None:
        if self.embeds_guidance:
            self.fixed_guidance = guidance
            self.denoiser.defaults = self.guidance_condition(self.denoiser, torch.tensor([guidance]))

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition, guidance: float | Tensor = 1.0) -> Tensor:
        """The guided velocity; one evaluation if the network receives the guidance scale, as latent consistency models.

        The stock pipeline does not apply classifier-free guidance to such a network.
        """
        if not self.embeds_guidance:
            return super().velocity(x_t, t, cond, guidance)
        scale = guidance if isinstance(guidance, Tensor) else torch.full((len(x_t),), guidance, device=x_t.device)
        with self._on_device():
            return self.denoiser.velocity(x_t, t, {**cond, **self.guidance_condition(self.denoiser, scale)})

    def embed_guidance(self, student: Denoiser, guidance: float) -> None:
        if isinstance(student.network, Adapted):
            raise ValueError(
                "method.guidances must be empty with memory.tier=lora: adapters cannot add the layer that embeds the "
                "guidance scale of a UNet"
            )
        if not self.embeds_guidance:
            add_guidance_embedding(student.network)
        student.defaults = self.guidance_condition(student, torch.tensor([guidance]))
        student.guidance_input = True

    def guidance_condition(self, student: Denoiser, guidance: Tensor) -> Condition:
        width = self.stock.unet.config.time_cond_proj_dim or guidance_width(student.network)
        return {"timestep_cond": guidance_embedding(guidance, width)}

    def parts(self, student: Denoiser, network: nn.Module, scheduler: Any) -> dict[str, Any]:
        if self.ignores_guidance and not student.guidance_input:
            ignore_guidance(network)
        return super().parts(student, network, scheduler)

    def lora_call(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        scale = {} if self.fixed_guidance is None else {"guidance_scale": self.fixed_guidance}
        return super().lora_call(num_steps, times) | scale
