"""The untrained components of the pocket audio teacher."""

from diffusers import (
    AutoencoderOobleck,
    CosineDPMSolverMultistepScheduler,
    StableAudioDiTModel,
    StableAudioProjectionModel,
)
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from teachers.pocket.words import encoder_options, word_tokenizer, words_of
from teachers.pocket_audio.captions import all_captions

RATE = 4000  # samples per second
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
    """A T5 tokenizer whose tokens are the words of the captions."""
    return word_tokenizer(words_of(all_captions()), LENGTH)


def make_text_encoder(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """A T5 encoder with two layers for `tokenizer`."""
    return T5EncoderModel(T5Config(**encoder_options(tokenizer, WIDTH)))


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
