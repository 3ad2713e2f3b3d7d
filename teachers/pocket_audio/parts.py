"""The untrained components of the pocket audio teacher."""

from diffusers import (
    AutoencoderOobleck,
    CosineDPMSolverMultistepScheduler,
    StableAudioDiTModel,
    StableAudioProjectionModel,
)
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from teachers.pocket_audio.captions import all_captions

RATE = 4000  # samples a second
SAMPLES = 4096  # samples of a sound: 1.024 s
SECONDS = SAMPLES / RATE
LATENT_CHANNELS = 24
LATENT_LENGTH = 128
LENGTH = 16  # tokens of a caption with padding
WIDTH = 64  # of the text encoder and of the conditions


def make_autoencoder() -> AutoencoderOobleck:
    """An Oobleck autoencoder of mono sound: 32 samples become one latent vector."""
    return AutoencoderOobleck(
        encoder_hidden_size=2 * LATENT_CHANNELS,  # its output is the mean and the deviation of the latents
        downsampling_ratios=[4, 8],
        channel_multiples=[2, 2],
        decoder_channels=24,
        decoder_input_channels=LATENT_CHANNELS,
        audio_channels=1,
        sampling_rate=RATE,
    )


def make_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer (Unigram) whose pieces are the words of the captions, with single characters for other words."""
    text = " ".join(all_captions()).replace(",", " ,")
    words = list(dict.fromkeys("\u2581" + word for word in text.split()))
    characters = [chr(c) for c in range(33, 127)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [(word, -1.0) for word in words] + [(",", -1.0), ("\u2581", -5.0)]
    pieces += [(c, -10.0) for c in characters if c != ","]
    return T5TokenizerFast(vocab=special + pieces, extra_ids=0, model_max_length=LENGTH)


def make_text_encoder(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """A T5 encoder with two layers for `tokenizer`."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def make_projection() -> StableAudioProjectionModel:
    """The projection of the seconds at which a sound starts and ends; the text's width is the conditions' width."""
    return StableAudioProjectionModel(text_encoder_dim=WIDTH, conditioning_dim=WIDTH, min_value=0, max_value=2)


def make_transformer() -> StableAudioDiTModel:
    """A transformer with four layers for latents (LATENT_CHANNELS, LATENT_LENGTH)."""
    return StableAudioDiTModel(
        sample_size=LATENT_LENGTH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        cross_attention_dim=WIDTH,
        time_proj_dim=64,
        global_states_input_dim=2 * WIDTH,
        cross_attention_input_dim=WIDTH,
    )


def make_scheduler() -> CosineDPMSolverMultistepScheduler:
    """Stable Audio's scheduler with a lower last noise level, because these sounds are short and clean."""
    return CosineDPMSolverMultistepScheduler(sigma_min=0.05, sigma_max=200, sigma_schedule="exponential")
