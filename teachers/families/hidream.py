"""HiDream-I1: a rectified-flow transformer with mixtures of experts, two CLIPs, T5 and Llama as its text encoders."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import HiDreamImagePipeline
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU
from torch import Tensor

from teachers.core.denoiser import Condition, Prediction
from teachers.core.noise_path import NoisePath
from teachers.core.schedule import schedule
from teachers.families.sized_image import SizedImage
from teachers.loading.source import Pipelines

LLAMA = "encoder_hidden_states_llama3"
# Arguments of the pipeline's `calculate_shift`, which it calls without the scheduler's.
SHIFTS = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}


class TrainableExperts(MOEFeedForwardSwiGLU):  # type: ignore[misc]
    """A mixture of experts with gradients and tangents. The network's own has none in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) after the experts that the gate selects for each, weighted, and the shared ones."""
        indices, weights, _ = self.gate(x)
        tokens = x.reshape(-1, x.shape[-1])
        mixed = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            chosen = indices == number  # (B N, experts of each token)
            share = (weights * chosen).sum(1, keepdim=True).to(x.dtype)
            if x.is_meta:  # without values all experts compute all tokens
                mixed = mixed + share * expert(tokens)
                continue
            rows = chosen.any(1).nonzero()[:, 0]
            mixed = mixed.index_add(0, rows, (share[rows] * expert(tokens[rows])).to(mixed.dtype))
        output: Tensor = mixed.view(x.shape) + self.shared_experts(x)
        return output


def meta_patches(network: Any, sample: Tensor) -> dict[str, Any]:
    """The network's arguments for a sample (B, C, H, W) on the meta device, where it cannot read the sizes it makes."""
    patch, (rows, channels, height, width) = network.config.patch_size, sample.shape
    sizes = height // patch, width // patch
    tokens = math.prod(sizes) if height == width else network.max_seq
    return {
        "hidden_states": sample.new_empty(rows, tokens, channels * patch**2) + sample.mean(),
        "hidden_states_masks": sample.new_empty(rows, tokens),
        "img_ids": sample.new_empty(rows, tokens, 3),
        "img_sizes": [sizes] * rows,
    }


class HiDream(SizedImage):
    """`HiDreamImagePipeline`. Images have the area of the default size, because the pipeline scales others to it.

    The condition has the outputs of every layer of Llama: 64 MiB a prompt for the published models.

    Raises:
        ValueError: If the pipeline would change the size.
    """

    pipelines: ClassVar[Pipelines] = (HiDreamImagePipeline,)
    statistics: ClassVar[tuple[str, ...]] = ("scaling_factor", "shift_factor")
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text_emb_dim": ("text_encoder", "text_encoder_2"),
        "caption_channels.0": ("text_encoder_3",),
        "caption_channels.1": ("text_encoder_4",),
    }
    passes_sigmas: ClassVar[bool] = False
    patch: ClassVar[int] = 1  # the network makes its tokens itself
    stream: ClassVar[int] = 0

    def __init__(
        self, pipeline: HiDreamImagePipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        for module in pipeline.transformer.modules():
            if isinstance(module, MOEFeedForwardSwiGLU):
                module.__class__ = TrainableExperts
        super().__init__(pipeline, sigma_data, size)
        unit, area = self.side_unit(), self.default_side() ** 2
        scale = math.sqrt(area / (self.size["height"] * self.size["width"]))  # as the pipeline computes it
        kept = {key: int(value * scale // unit * unit) for key, value in self.size.items()}
        if kept != self.size:
            raise ValueError(
                f"teacher.size must be a size that {type(pipeline).__name__} keeps, got {self.size['height']} x "
                f"{self.size['width']}, which it changes to {kept['height']} x {kept['width']}"
            )

    def side_unit(self) -> int:
        return 2 * self.compression()

    def noise_path(self, sigma_data: float) -> tuple[NoisePath, Prediction]:
        scheduler = self.stock.scheduler
        if "base_shift" in scheduler.config:  # the pipeline shifts by constants, whatever the scheduler's config has
            scheduler = type(scheduler).from_config(scheduler.config, **SHIFTS)
        return schedule(scheduler, sigma_data, self.tokens(), variance_preserving=False)

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network, whose output is the negative of a rectified flow's."""
        cond = {key: value.transpose(0, 1) if key == LLAMA else value for key, value in cond.items()}
        patches = meta_patches(network, sample) if sample.is_meta else {"hidden_states": sample}
        output: Tensor = network(**patches, timesteps=timestep, **cond, return_dict=False)[0]
        return -output

    def tokens(self) -> int:
        return int(self.stock.transformer.max_seq)  # also of images that are not square, which are padded

    def condition(self, prompts: Sequence[str]) -> Condition:
        with torch.no_grad():
            t5, _, llama, _, pooled, _ = self.text_pipeline().encode_prompt(
                list(prompts), device=self.device, do_classifier_free_guidance=False
            )
        return {
            "encoder_hidden_states_t5": t5.float(),
            LLAMA: llama.transpose(0, 1).float(),
            "pooled_embeds": pooled.float(),
        }
