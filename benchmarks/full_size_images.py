"""Folders of published pipelines of images with transformers at full size, with configurations only.

The sizes are those of the published checkpoints stable-diffusion-3-medium and stable-diffusion-3.5-medium of
stabilityai, PixArt-alpha/PixArt-XL-2-512x512, Efficient-Large-Model/Sana_1600M_1024px_diffusers, Qwen/Qwen-Image and
Tongyi-MAI/Z-Image. Where nothing is given, they are the defaults of the class. Tokenizers are of single letters.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    Gemma2Config,
    GemmaTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2Tokenizer,
    Qwen3Config,
    T5Config,
)

from benchmarks.full_size_media import XXL
from teachers.pocket.parts import make_tokenizer
from teachers.pocket_video.parts import make_tokenizer as make_t5_tokenizer

# ending of the component's name: configuration of the encoder, its class, its tokenizer
Texts = Mapping[str, tuple[PretrainedConfig, str, PreTrainedTokenizerBase]]
CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"


def sd3(folder: Path, **config: Any) -> None:
    """Write the pipeline folder of Stable Diffusion 3 Medium, or of a version of it with another transformer."""
    clip = make_tokenizer(folder / "tokenizer")
    clip.model_max_length = 77
    small = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    big = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    kind = "CLIPTextModelWithProjection"
    texts: Texts = {
        "": (CLIPTextConfig(**small, projection_dim=768), kind, clip),
        "_2": (CLIPTextConfig(**big, projection_dim=1280, hidden_act="gelu"), kind, clip),
        "_3": (T5Config(vocab_size=32128, **XXL), "T5EncoderModel", make_t5_tokenizer()),
    }
    sizes = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
    parts = {"transformer": lambda: SD3Transformer2DModel(**(sizes | config)), "vae": lambda: autoencoder(16)}
    write(folder, "StableDiffusion3Pipeline", FlowMatchEulerDiscreteScheduler(shift=3.0), texts, parts)


def sd35(folder: Path) -> None:
    """Write the pipeline folder of Stable Diffusion 3.5 Medium."""
    sd3(folder, qk_norm="rms_norm", dual_attention_layers=tuple(range(13)), pos_embed_max_size=384)


def pixart(folder: Path) -> None:
    """Write the pipeline folder of PixArt-Alpha at 512 x 512."""
    texts: Texts = {"": (T5Config(vocab_size=32128, **XXL), "T5EncoderModel", make_t5_tokenizer())}
    parts = {
        "transformer": lambda: PixArtTransformer2DModel(sample_size=64, caption_channels=4096),
        "vae": lambda: autoencoder(4),
    }
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02)
    write(folder, "PixArtAlphaPipeline", scheduler, texts, parts)


def sana(folder: Path) -> None:
    """Write the pipeline folder of Sana 1.6B at 1024 x 1024."""
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"▁abcdefghijklmnopqrstuvwxyz"]
    tokenizer = GemmaTokenizer({letter: i for i, letter in enumerate(letters)}, [])
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
    write(folder, "SanaPipeline", scheduler, {"": (Gemma2Config(), "Gemma2Model", tokenizer)}, parts)


def qwen_image(folder: Path) -> None:
    """Write the pipeline folder of Qwen-Image."""
    shift = {"base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192}
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift_terminal=0.02, time_shift_type="exponential", **shift
    )
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    config = Qwen2_5_VLConfig(text_config=sizes | {"num_key_value_heads": 4}, vision_config={"out_hidden_size": 3584})
    texts: Texts = {"": (config, "Qwen2_5_VLForConditionalGeneration", qwen_tokenizer())}
    parts = {"transformer": QwenImageTransformer2DModel, "vae": AutoencoderKLQwenImage}
    write(folder, "QwenImagePipeline", scheduler, texts, parts)


def z_image(folder: Path) -> None:
    """Write the pipeline folder of Z-Image."""
    sizes = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
    config = Qwen3Config(**sizes, num_key_value_heads=8, head_dim=128)
    parts = {"transformer": ZImageTransformer2DModel, "vae": lambda: autoencoder(16)}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    write(folder, "ZImagePipeline", scheduler, {"": (config, "Qwen3Model", qwen_tokenizer())}, parts)


def autoencoder(channels: int) -> AutoencoderKL:
    """An autoencoder with the sizes of Stable Diffusion's and latents of `channels` channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=channels,
        sample_size=1024,
        shift_factor=0.1 if channels == 16 else None,
        use_quant_conv=channels == 4,
        use_post_quant_conv=channels == 4,
    )


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer of single bytes with a chat template."""
    vocab = {letter: i for i, letter in enumerate(["<|endoftext|>", *sorted(ByteLevel.alphabet())])}
    return Qwen2Tokenizer(vocab, [], padding_side="right", chat_template=CHAT)


def write(folder: Path, pipeline: str, scheduler: Any, texts: Texts, parts: Mapping[str, Callable[[], Any]]) -> None:
    """Write the configurations of a pipeline, and its tokenizers.

    Args:
        folder: The pipeline's folder.
        pipeline: Its class.
        scheduler: Its scheduler.
        texts: Its text encoders.
        parts: Its networks by name, as functions that build them.
    """
    index: dict[str, Any] = {"_class_name": pipeline, "scheduler": ["diffusers", type(scheduler).__name__]}
    scheduler.save_pretrained(folder / "scheduler")
    for ending, (config, kind, tokenizer) in texts.items():
        config.save_pretrained(folder / f"text_encoder{ending}")
        tokenizer.save_pretrained(folder / f"tokenizer{ending}")
        index[f"text_encoder{ending}"] = ["transformers", kind]
        index[f"tokenizer{ending}"] = ["transformers", type(tokenizer).__name__]
    with torch.device("meta"):
        for name, build in parts.items():
            network = build()
            network.save_config(folder / name)
            index[name] = ["diffusers", type(network).__name__]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
