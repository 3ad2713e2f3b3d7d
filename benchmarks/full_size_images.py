"""Folders of published pipelines of images with transformers at full size, with configurations only.

The sizes are those of the published checkpoints stable-diffusion-3-medium and stable-diffusion-3.5-medium of
stabilityai, PixArt-alpha/PixArt-XL-2-512x512, Efficient-Large-Model/Sana_1600M_1024px_diffusers, FLUX.1-dev of
black-forest-labs, Qwen/Qwen-Image and Tongyi-MAI/Z-Image. Where nothing is given, they are the defaults of the class.
"""

from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from transformers import Gemma2Config, Qwen2_5_VLConfig, Qwen3Config

from benchmarks.full_size_parts import (
    BIG_CLIP,
    SMALL_CLIP,
    autoencoder,
    clip,
    gemma_tokenizer,
    qwen_tokenizer,
    t5,
    write,
)


def sixteen_channels(**config: Any) -> AutoencoderKL:
    """An autoencoder whose latents have 16 channels, as those of flow transformers."""
    return autoencoder(16, sample_size=1024, use_quant_conv=False, use_post_quant_conv=False, **config)


def sd3(folder: Path, **config: Any) -> None:
    """Write the pipeline folder of Stable Diffusion 3 Medium, or of a version of it with another transformer."""
    kind = "CLIPTextModelWithProjection"
    texts = {
        "": clip(folder / "tokenizer", SMALL_CLIP, kind, projection_dim=768),
        "_2": clip(folder / "tokenizer_2", BIG_CLIP, kind, projection_dim=1280, hidden_act="gelu"),
        "_3": t5(),
    }
    sizes = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
    parts = {
        "transformer": lambda: SD3Transformer2DModel(**(sizes | config)),
        "vae": lambda: sixteen_channels(scaling_factor=1.5305, shift_factor=0.0609),
    }
    write(folder, "StableDiffusion3Pipeline", FlowMatchEulerDiscreteScheduler(shift=3.0), texts, parts)


def sd35(folder: Path) -> None:
    """Write the pipeline folder of Stable Diffusion 3.5 Medium."""
    sd3(folder, qk_norm="rms_norm", dual_attention_layers=tuple(range(13)), pos_embed_max_size=384)


def pixart(folder: Path) -> None:
    """Write the pipeline folder of PixArt-Alpha at 512 x 512."""
    parts = {
        "transformer": lambda: PixArtTransformer2DModel(sample_size=64, caption_channels=4096),
        "vae": lambda: autoencoder(sample_size=512, scaling_factor=0.18215),
    }
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02)
    write(folder, "PixArtAlphaPipeline", scheduler, {"": t5()}, parts)


def sana(folder: Path) -> None:
    """Write the pipeline folder of Sana 1.6B at 1024 x 1024."""
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    parts = {
        "transformer": SanaTransformer2DModel,
        "vae": lambda: AutoencoderDC(
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41407,
        ),
    }
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    write(folder, "SanaPipeline", scheduler, {"": (Gemma2Config(), "Gemma2Model", gemma_tokenizer())}, parts)


def flux(folder: Path) -> None:
    """Write the pipeline folder of Flux.1 dev."""
    texts = {"": clip(folder / "tokenizer", SMALL_CLIP), "_2": t5()}
    parts = {
        "transformer": lambda: FluxTransformer2DModel(guidance_embeds=True),
        "vae": lambda: sixteen_channels(scaling_factor=0.3611, shift_factor=0.1159),
    }
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    write(folder, "FluxPipeline", scheduler, texts, parts)


def qwen_image(folder: Path) -> None:
    """Write the pipeline folder of Qwen-Image."""
    shift = {"base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192}
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift_terminal=0.02, time_shift_type="exponential", **shift
    )
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    config = Qwen2_5_VLConfig(text_config=sizes | {"num_key_value_heads": 4}, vision_config={"out_hidden_size": 3584})
    texts = {"": (config, "Qwen2_5_VLForConditionalGeneration", qwen_tokenizer())}
    parts = {"transformer": QwenImageTransformer2DModel, "vae": AutoencoderKLQwenImage}
    write(folder, "QwenImagePipeline", scheduler, texts, parts)


def z_image(folder: Path) -> None:
    """Write the pipeline folder of Z-Image."""
    sizes = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
    config = Qwen3Config(**sizes, num_key_value_heads=8, head_dim=128)
    parts = {
        "transformer": ZImageTransformer2DModel,
        "vae": lambda: sixteen_channels(scaling_factor=0.3611, shift_factor=0.1159),
    }
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    write(folder, "ZImagePipeline", scheduler, {"": (config, "Qwen3Model", qwen_tokenizer())}, parts)
