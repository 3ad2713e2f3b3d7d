"""Folders of Stable Diffusion 1.5 and XL at full size, with configurations only, for measurements."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from benchmarks.full_size_parts import BIG_CLIP, SMALL_CLIP, autoencoder, clip, write
from teachers.pocket.parts import sd15_scheduler


def sd15(folder: Path) -> None:
    """Write the pipeline folder of Stable Diffusion 1.5."""
    parts = {
        "vae": lambda: autoencoder(sample_size=512, scaling_factor=0.18215),
        "unet": lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
    }
    texts = {"": clip(folder / "tokenizer", SMALL_CLIP)}
    write(folder, "StableDiffusionPipeline", sd15_scheduler(), texts, parts, requires_safety_checker=False)


def sdxl(folder: Path) -> None:
    """Write the pipeline folder of Stable Diffusion XL base 1.0."""
    texts = {
        "": clip(folder / "tokenizer", SMALL_CLIP),
        "_2": clip(
            folder / "tokenizer_2", BIG_CLIP, "CLIPTextModelWithProjection", projection_dim=1280, hidden_act="gelu"
        ),
    }
    parts = {
        "vae": lambda: autoencoder(sample_size=1024, scaling_factor=0.13025),
        "unet": lambda: UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
    }
    write(folder, "StableDiffusionXLPipeline", sd15_scheduler(), texts, parts, force_zeros_for_empty_prompt=True)


# name: family, function that writes the folder, shapes of the condition of one sample
MODELS: dict[str, tuple[str, Callable[[Path], None], dict[str, tuple[int, ...]]]] = {
    "sd15": ("stable_diffusion", sd15, {"encoder_hidden_states": (77, 768)}),
    "sdxl": (
        "stable_diffusion_xl",
        sdxl,
        {"encoder_hidden_states": (77, 2048), "text_embeds": (1280,), "time_ids": (6,)},
    ),
}


@torch.no_grad()
def randomise(module: Any) -> Any:
    """Fill the parameters of `module`; buffers of positions get their numbers."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
            else:
                parameter.fill_(float(name == "weight"))
        for name, buffer in part.named_buffers(recurse=False):
            if name == "position_ids":
                buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return module
