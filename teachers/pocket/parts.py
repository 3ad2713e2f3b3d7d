"""The untrained components of the pocket teacher: autoencoder, tokenizer, text encoder, UNet and scheduler."""

import json
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from teachers.pocket.captions import all_captions

LENGTH = 16  # tokens of a caption with padding


def make_autoencoder(channels: tuple[int, int, int]) -> AutoencoderKL:
    """An autoencoder with a compression factor of 4 and 4 latent channels; `channels` are the widths of its blocks."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=32,
        scaling_factor=1.0,
    )


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE with an end-of-word suffix) that is trained on the captions.

    Args:
        folder: Where it is saved.

    Returns:
        The tokenizer, loaded from `folder`.
    """
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    bpe.train_from_iterator(
        all_captions(),
        trainers.BpeTrainer(vocab_size=1000, initial_alphabet=bytes_, end_of_word_suffix="</w>", show_progress=False),
    )
    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = bytes_ + [b + "</w>" for b in bytes_] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder, trust_remote_code=False)


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text model with two layers for `tokenizer`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=192,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_unet() -> UNet2DConditionModel:
    """A UNet with two levels for latents (4, 8, 8)."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def sd15_scheduler() -> DDIMScheduler:
    """A DDIM scheduler with the noise schedule of Stable Diffusion 1.5 and trailing timesteps."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,  # unused with trailing spacing, but diffusers warns about other values
        timestep_spacing="trailing",
    )
