"""Folders of published pipelines at full size, with configurations only, for measurements of memory and speed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, T5Config

from benchmarks.full_size_media import XXL
from teachers.pocket.parts import make_tokenizer, sd15_scheduler
from teachers.pocket_video.parts import make_tokenizer as make_t5_tokenizer


def sd15(folder: Path) -> None:
    """Write the pipeline folder of Stable Diffusion 1.5."""
    autoencoder(folder, sample_size=512, scaling_factor=0.18215)
    text_encoder(folder, "", hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    network(folder, sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    index(folder, "StableDiffusionPipeline", text_encoder="CLIPTextModel", requires_safety_checker=False)


def sdxl(folder: Path) -> None:
    """Write the pipeline folder of Stable Diffusion XL base 1.0."""
    autoencoder(folder, sample_size=1024, scaling_factor=0.13025)
    text_encoder(folder, "", hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    big = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    text_encoder(folder, "_2", **big, projection_dim=1280, hidden_act="gelu")
    network(
        folder,
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
    )
    encoders = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    index(folder, "StableDiffusionXLPipeline", **encoders, force_zeros_for_empty_prompt=True)


def flux(folder: Path) -> None:
    """Write the pipeline folder of Flux.1 dev."""
    autoencoder(folder, latent_channels=16, sample_size=1024, scaling_factor=0.3611, shift_factor=0.1159)
    text_encoder(folder, "", hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    T5Config(vocab_size=32128, **XXL).save_pretrained(folder / "text_encoder_2")
    make_t5_tokenizer().save_pretrained(folder / "tokenizer_2")
    with torch.device("meta"):
        FluxTransformer2DModel(guidance_embeds=True).save_config(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True).save_pretrained(folder / "scheduler")
    parts = {
        "_class_name": "FluxPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(parts), encoding="utf-8")


def autoencoder(folder: Path, latent_channels: int = 4, **config: Any) -> None:
    """Write the configuration of an autoencoder with the sizes of Stable Diffusion's."""
    with torch.device("meta"):
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=latent_channels,
            **config,
        ).save_config(folder / "vae")


def text_encoder(folder: Path, suffix: str, **config: Any) -> None:
    """Write a tokenizer and the configuration of a CLIP text encoder."""
    make_tokenizer(folder / f"tokenizer{suffix}").save_pretrained(folder / f"tokenizer{suffix}")
    CLIPTextConfig(vocab_size=49408, **config).save_pretrained(folder / f"text_encoder{suffix}")


def network(folder: Path, **config: Any) -> None:
    """Write the configuration of the UNet."""
    with torch.device("meta"):
        UNet2DConditionModel(**config).save_config(folder / "unet")


def index(folder: Path, pipeline: str, **rest: Any) -> None:
    """Write the scheduler and model_index.json; `rest` has its text encoders and options."""
    sd15_scheduler().save_pretrained(folder / "scheduler")
    parts: dict[str, Any] = {
        "_class_name": pipeline,
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    for name, value in rest.items():
        if name.startswith("text_encoder"):
            parts[name] = ["transformers", value]
            parts[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
        else:
            parts[name] = value
    (folder / "model_index.json").write_text(json.dumps(parts), encoding="utf-8")


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
