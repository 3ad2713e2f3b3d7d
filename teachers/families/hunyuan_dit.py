"""Hunyuan-DiT: a diffusion transformer with skip connections, a Chinese and English CLIP and mT5."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import HunyuanDiTPipeline
from diffusers.models.embeddings import (
    HunyuanCombinedTimestepTextSizeStyleEmbedding,
    HunyuanDiTAttentionPool,
    get_2d_rotary_pos_embed,
)
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import SUPPORTED_SHAPE, get_resize_crop_region_for_grid
from torch import Tensor, nn

from teachers.core.denoiser import Condition, Denoiser
from teachers.families.latent import LatentTeacher
from teachers.loading.source import Pipelines

FACTOR = 8  # pixels of a latent pixel in the pipeline, whatever its autoencoder is
UNIT = 16  # pixels of which the pipeline makes the sides of an image multiples
ORIGINAL = (1024, 1024)  # the original size of an image, a condition, in the pipeline's call by default
LENGTHS = (77, 256)  # tokens of a prompt for each text encoder


class CalledPool(HunyuanDiTAttentionPool):  # type: ignore[misc]
    """The network's pooling of mT5's embeddings, which calls its layers. The network's own reads their weights, so that
    adapters have no effect, and frozen weights in half precision do not fit."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) as one vector (B, D)."""
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + self.positional_embedding.to(x.dtype)
        inputs = ((self.q_proj, x[:, :1]), (self.k_proj, x), (self.v_proj, x))
        heads = [layer(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for layer, tokens in inputs]
        found: Tensor = self.c_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return found[:, 0]


class ExactTime(HunyuanCombinedTimestepTextSizeStyleEmbedding):  # type: ignore[misc]
    """The network's time embedding, with features of timesteps in float32. The network computes in their precision."""

    def forward(self, timestep: Tensor, text: Tensor, sizes: Tensor, style: Tensor, hidden_dtype: Any = None) -> Tensor:
        """The embedding (B, D), in the precision of the text."""
        found: Tensor = super().forward(timestep, text, sizes, style, hidden_dtype=text.dtype)
        return found


class HunyuanDiT(LatentTeacher):
    """`HunyuanDiTPipeline`. Its learned variance is ignored.

    Raises:
        ValueError: If the transformer has no variance, the autoencoder has another compression than the pipeline
            assumes, or the pipeline would change the size.
    """

    pipelines: ClassVar[Pipelines] = (HunyuanDiTPipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "cross_attention_dim": ("text_encoder",),
        "cross_attention_dim_t5": ("text_encoder_2",),
    }
    options: ClassVar[dict[str, Any]] = {"safety_checker": None, "feature_extractor": None}
    takes_flow: ClassVar[bool] = False

    def __init__(self, pipeline: HunyuanDiTPipeline, sigma_data: float = 1.0) -> None:
        if not pipeline.transformer.config.learn_sigma:
            raise ValueError("learn_sigma of the transformer must be True for a HunyuanDiTPipeline, got False")
        pipeline.transformer.time_extra_emb.__class__ = ExactTime
        pipeline.transformer.time_extra_emb.pooler.__class__ = CalledPool
        super().__init__(pipeline, sigma_data)
        if self.factor != FACTOR:
            raise ValueError(
                f"the vae of a HunyuanDiTPipeline must have {FACTOR} pixels for each latent pixel, got {self.factor}"
            )
        if any(side % UNIT for side in self.image_size):
            raise ValueError(
                f"sample_size of the transformer of a HunyuanDiTPipeline must be a multiple of {UNIT // FACTOR}, got "
                f"{pipeline.transformer.config.sample_size}"
            )

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network with the positions of its tokens, which are relative to images of 512 x 512 pixels."""
        config = network.config
        grid = tuple(side // config.patch_size for side in sample.shape[2:])
        region = get_resize_crop_region_for_grid(grid, 512 // FACTOR // config.patch_size)
        positions = get_2d_rotary_pos_embed(
            config.attention_head_dim, region, grid, device=sample.device, output_type="pt"
        )
        output: Tensor = network(sample, timestep=timestep, **cond, image_rotary_emb=positions, return_dict=False)[0]
        return output

    def condition(self, prompts: Sequence[str]) -> Condition:
        found: dict[str, Tensor] = {}
        for number, (length, name) in enumerate(zip(LENGTHS, ("", "_t5"), strict=True)):
            with torch.no_grad():
                text, _, mask, _ = self.text_pipeline().encode_prompt(
                    list(prompts),
                    self.device,
                    do_classifier_free_guidance=False,
                    max_sequence_length=length,
                    text_encoder_index=number,
                )
            found |= {f"encoder_hidden_states{name}": text.float(), f"text_embedding_mask{name}": mask}
        sizes = torch.tensor([[*ORIGINAL, *self.image_size, 0, 0]], dtype=torch.float32, device=self.device)
        found["image_meta_size"] = sizes.repeat(len(prompts), 1)
        found["style"] = torch.zeros(len(prompts), dtype=torch.long, device=self.device)
        return found

    def size_call(self) -> dict[str, Any]:
        return {} if self.image_size in SUPPORTED_SHAPE else {"use_resolution_binning": False}

    def parts(self, student: Denoiser, network: nn.Module, scheduler: Any) -> dict[str, Any]:
        unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return super().parts(student, network, scheduler) | unused
