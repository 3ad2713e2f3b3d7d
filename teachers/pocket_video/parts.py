"""The untrained components of the pocket video teacher."""

from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

from teachers.media import Video
from teachers.pocket.words import encoder_options, word_tokenizer, words_of
from teachers.pocket_video.captions import all_captions

CLIP = Video(frames=9, height=32, width=32, rate=8)
LATENT_CHANNELS = 8
LATENT = (LATENT_CHANNELS, 3, 8, 8)  # the shape of a clip's latents
LENGTH = 16  # tokens of a caption with padding, which Wan's network sees too
WIDTH = 64  # of the text encoder
FLOW_SHIFT = 3.0


def make_autoencoder() -> AutoencoderKLWan:
    """Wan's causal autoencoder: 9 frames of 32 x 32 pixels become 3 x 8 x 8 latents. About a million parameters."""
    return AutoencoderKLWan(
        base_dim=12,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        scale_factor_temporal=4,
        scale_factor_spatial=4,
    )


def make_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer whose tokens are the words of the captions."""
    return word_tokenizer((word for word in words_of(all_captions()) if word != ","), LENGTH)


def make_text_encoder(tokenizer: T5TokenizerFast) -> UMT5EncoderModel:
    """A UMT5 encoder with two layers for `tokenizer`."""
    return UMT5EncoderModel(UMT5Config(**encoder_options(tokenizer, WIDTH)))


def make_transformer() -> WanTransformer3DModel:
    """A transformer with four layers for latents of the shape LATENT."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=WIDTH,
        freq_dim=64,
        ffn_dim=384,
        num_layers=4,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


def make_scheduler() -> UniPCMultistepScheduler:
    """The scheduler of Wan 2.1 for small clips."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=FLOW_SHIFT
    )
