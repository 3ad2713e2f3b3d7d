"""Builders of tiny random pipelines of sounds: AudioLDM 2 and ACE-Step."""

from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AutoencoderOobleck,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3Config,
    Qwen3Model,
    RobertaTokenizer,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
)

from tests.teachers.tiny_hunyuan import qwen_sizes, qwen_tokenizer
from tests.teachers.tiny_pipelines import WIDTH, autoencoder, t5

RATE = 400  # audio samples a second


def clap() -> tuple[ClapModel, RobertaTokenizer]:
    letters = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    tokenizer = RobertaTokenizer({letter: i for i, letter in enumerate(letters)}, [], model_max_length=32)
    common = {"hidden_size": WIDTH, "num_hidden_layers": 1, "projection_dim": WIDTH}
    text = common | {"vocab_size": len(tokenizer), "num_attention_heads": 2, "intermediate_size": WIDTH}
    text |= {"max_position_embeddings": 40, "pad_token_id": 1}
    audio = common | {"spec_size": 64, "num_mel_bins": 16, "patch_stride": [4, 4], "depths": [1, 1]}
    audio |= {"num_attention_heads": [1, 1], "patch_embeds_hidden_size": 8, "hidden_size": 16}
    return ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=WIDTH)), tokenizer


def vocoder() -> SpeechT5HifiGan:
    upsampling = {"upsample_initial_channel": 8, "upsample_rates": [2, 4], "upsample_kernel_sizes": [4, 8]}
    blocks = {"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]], "normalize_before": False}
    return SpeechT5HifiGan(SpeechT5HifiGanConfig(model_in_dim=8, sampling_rate=RATE, **upsampling, **blocks))


def audioldm2(**changes) -> AudioLDM2Pipeline:
    encoder, tokenizer = clap()
    t5_encoder, t5_tokenizer = t5()
    t5_tokenizer.model_max_length = 32
    language = {"n_embd": WIDTH, "n_layer": 1, "n_head": 2, "vocab_size": 8, "n_positions": 128, "max_new_tokens": 4}
    network = AudioLDM2UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 2,
            "cross_attention_dim": ([None, WIDTH, WIDTH],) * 2,
        }
        | changes
    )
    return AudioLDM2Pipeline(
        vae=autoencoder(in_channels=1, out_channels=1, scaling_factor=0.9),
        text_encoder=encoder,
        text_encoder_2=t5_encoder,
        projection_model=AudioLDM2ProjectionModel(WIDTH, WIDTH, WIDTH),
        language_model=GPT2LMHeadModel(GPT2Config(**language)),
        tokenizer=tokenizer,
        tokenizer_2=t5_tokenizer,
        feature_extractor=ClapFeatureExtractor(feature_size=16),
        unet=network,
        scheduler=DDIMScheduler(
            beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        vocoder=vocoder(),
    )


def ace_step(**changes) -> AceStepPipeline:
    tokenizer = qwen_tokenizer()
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    sizes = heads | {"hidden_size": WIDTH, "intermediate_size": WIDTH}
    network = AceStepTransformer1DModel(
        **(sizes | {"num_hidden_layers": 2, "in_channels": 12, "audio_acoustic_hidden_dim": 4, "sliding_window": 2})
        | changes
    )
    layers = {"num_lyric_encoder_hidden_layers": 1, "num_timbre_encoder_hidden_layers": 1}
    conditions = AceStepConditionEncoder(**sizes, **layers, text_hidden_dim=WIDTH, timbre_hidden_dim=4)
    conditions.silence_latent.normal_()
    vae = AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        decoder_channels=4,
        decoder_input_channels=4,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=RATE,
    )
    encoder = Qwen3Model(Qwen3Config(**qwen_sizes(tokenizer, 1), head_dim=8))
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
    return AceStepPipeline(vae, encoder, tokenizer, network, conditions, scheduler)
