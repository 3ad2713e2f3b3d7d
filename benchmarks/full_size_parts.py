"""What the folders of full-size pipelines without weights have in common: how they are written, and their parts."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTokenizer,
    GemmaTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
    T5Config,
)

from teachers.pocket.parts import make_tokenizer
from teachers.pocket_video.parts import make_tokenizer as make_t5_tokenizer

# ending of the component's name: configuration of the encoder, its class, its tokenizer
Texts = Mapping[str, tuple[PretrainedConfig, str, PreTrainedTokenizerBase]]
CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
SMALL_CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
BIG_CLIP = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}


def write(
    folder: Path,
    pipeline: str,
    scheduler: Any,
    texts: Texts,
    parts: Mapping[str, Callable[[], Any]],
    **settings: Any,
) -> None:
    """Write the configurations of a pipeline, and its tokenizers.

    Args:
        folder: The pipeline's folder.
        pipeline: Its class.
        scheduler: Its scheduler.
        texts: Its text encoders.
        parts: Its other networks by name, as functions that build them.
        settings: Further entries of model_index.json.
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
            module = type(network).__module__.split(".")  # diffusers.models..., or diffusers.pipelines.<name>...
            index[name] = [module[2] if module[1] == "pipelines" else "diffusers", type(network).__name__]
    (folder / "model_index.json").write_text(json.dumps(index | settings), encoding="utf-8")


def clip(folder: Path, sizes: Mapping[str, Any], kind: str = "CLIPTextModel", **config: Any) -> tuple[Any, str, Any]:
    """A CLIP text encoder, and a tokenizer of the words of the pocket teacher.

    Args:
        folder: The tokenizer's folder.
        sizes: Its sizes: SMALL_CLIP or BIG_CLIP.
        kind: Its class.
        config: Further entries of its configuration.
    """
    tokenizer: CLIPTokenizer = make_tokenizer(folder)
    tokenizer.model_max_length = 77
    return CLIPTextConfig(vocab_size=49408, **sizes, **config), kind, tokenizer


def t5(**sizes: Any) -> tuple[Any, str, Any]:
    """A T5 encoder, by default T5 XXL, and a tokenizer of the words of the pocket video teacher."""
    return T5Config(vocab_size=32128, **(sizes or XXL)), "T5EncoderModel", make_t5_tokenizer()


def gemma_tokenizer() -> GemmaTokenizer:
    """A tokenizer of single letters."""
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"▁abcdefghijklmnopqrstuvwxyz"]
    return GemmaTokenizer({letter: i for i, letter in enumerate(letters)}, [])


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer of single bytes with a chat template."""
    vocab = {letter: i for i, letter in enumerate(["<|endoftext|>", *sorted(ByteLevel.alphabet())])}
    return Qwen2Tokenizer(vocab, [], padding_side="right", chat_template=CHAT)


def autoencoder(latent_channels: int = 4, **config: Any) -> AutoencoderKL:
    """An autoencoder with the sizes of Stable Diffusion's."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=latent_channels,
        **config,
    )
