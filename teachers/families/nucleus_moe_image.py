"""NucleusMoE-Image: a rectified-flow transformer with mixtures of experts, with a layer of Qwen3-VL as its text."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import NucleusMoEImagePipeline
from diffusers.models.transformers.transformer_nucleusmoe_image import SwiGLUExperts
from torch import Tensor

from teachers.core.denoiser import Condition
from teachers.families.clip_autoencoder import ClipAutoencoder
from teachers.families.flow_transformer import UNIT, check_unit
from teachers.families.output_guidance import TokenNormGuidance
from teachers.families.packing import pack, unpack
from teachers.families.unbatched import encode_each, padded
from teachers.loading.source import TEXT_COMPONENTS, Pipelines

LENGTH = 1024  # tokens of a prompt: the default of the pipeline
TEXT, MASK = "encoder_hidden_states", "encoder_hidden_states_mask"


class EqualExperts(SwiGLUExperts):  # type: ignore[misc]
    """Experts that take equal numbers of tokens, as each expert of this network chooses as many as the others.

    The network's own code reads these numbers from a tensor, or calls a kernel without a forward derivative.
    """

    def forward(self, x: Tensor, num_tokens_per_expert: Tensor) -> Tensor:
        """Tokens (experts N, C), in the order of the experts, after their experts."""
        gate, up = (x.unflatten(0, (self.num_experts, -1)) @ self.gate_up_proj).chunk(2, dim=-1)
        return ((F.silu(gate) * up) @ self.down_proj).flatten(0, 1)


class NucleusMoEImage(TokenNormGuidance, ClipAutoencoder):
    """`NucleusMoEImagePipeline`. Guidance keeps the norm of each token of the network's output.

    Each expert chooses the tokens of a sample with the largest scores. The choice is a constant of gradients and
    tangents. It is a step function of the sample and the timestep, so where two scores are nearly equal, rounding can
    change it, and with it the output.
    """

    pipelines: ClassVar[Pipelines] = (NucleusMoEImagePipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"joint_attention_dim": ("text_encoder",)}
    encoder_components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "condition": (*TEXT_COMPONENTS, "processor"),
        "encode": ("vae",),
    }
    pads_prompts: ClassVar[bool] = True
    network_patch: ClassVar[int | None] = 2

    def __init__(
        self, pipeline: NucleusMoEImagePipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        for module in pipeline.transformer.modules():
            if isinstance(module, SwiGLUExperts):
                module.__class__ = EqualExperts
        super().__init__(pipeline, sigma_data, size)
        check_unit(self)

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network, whose output is the negative of a rectified flow's, on tokens (B, H W / 4, 4 C)."""
        height, width = sample.shape[2:]
        output: Tensor = network(
            hidden_states=pack(sample),
            timestep=timestep / UNIT,
            **cond,
            img_shapes=[(1, height // 2, width // 2)] * len(sample),
            return_dict=False,
        )[0]
        return -unpack(output, height, width)

    def _check_channels(self) -> None:
        self.check_patches()

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Embeddings and a mask of a fixed length; the pipeline pads to multiples of 8 tokens."""
        if self.device.type == "meta":  # whether the pipeline returns a mask depends on its values
            return {key: value.expand(len(prompts), *value.shape[1:]) for key, value in self.meta_condition().items()}
        return encode_each(prompts, self._encode)

    @torch.no_grad()
    def _encode(self, prompt: str) -> Condition:
        text, mask = self.text_pipeline().encode_prompt([prompt], device=self.device, max_sequence_length=LENGTH)
        mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device) if mask is None else mask
        return {TEXT: padded(text.float(), LENGTH), MASK: padded(mask, LENGTH)}

    def meta_condition(self) -> Condition:
        text = torch.empty(1, LENGTH, self.stock.transformer.config.joint_attention_dim, device="meta")
        return {TEXT: text, MASK: torch.empty(1, LENGTH, dtype=torch.long, device="meta")}
