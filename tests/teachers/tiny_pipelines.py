"""Builders of tiny random pipelines with the real architecture of every family."""

from collections.abc import Callable

from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WIDTH = 32  # of every text encoder


def autoencoder(**changes) -> AutoencoderKL:
    """A tiny autoencoder with 4 latent channels and a compression factor of 2."""
    sizes = {
        "latent_channels": 4,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "sample_size": 16,
    }
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(mid_block_add_attention=False, **(sizes | blocks | changes))


def eight_fold(**scaling) -> AutoencoderKL:
    """A tiny autoencoder with a compression factor of 8."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return autoencoder(block_out_channels=(8,) * 4, **scaling, **blocks)


def clip(tokenizer, kind=CLIPTextModel):
    """A tiny CLIP text encoder for `tokenizer`."""
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def t5(width: int = WIDTH) -> tuple[T5EncoderModel, T5Tokenizer]:
    """A tiny T5 encoder and its tokenizer of single letters."""
    letters = [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    tokenizer = T5Tokenizer([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], extra_ids=0)
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2)
    return T5EncoderModel(config), tokenizer


def gemma(layers: int = 1, **options) -> tuple[Gemma2Model, GemmaTokenizer]:
    """A tiny Gemma model and its tokenizer of single letters."""
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"▁abcdefghijklmnopqrstuvwxyz"]
    tokenizer = GemmaTokenizer({letter: i for i, letter in enumerate(letters)}, [], **options)
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": layers, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), **sizes, **heads)), tokenizer


def unet(**changes) -> UNet2DConditionModel:
    sizes = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(sizes | changes))


def betas(kind, **changes):
    return kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **changes)


def stable_diffusion(tokenizer, scheduler=None, **schedule):
    scheduler = scheduler or betas(DDIMScheduler, clip_sample=False, set_alpha_to_one=False, **schedule)
    network = unet(cross_attention_dim=WIDTH)
    return StableDiffusionPipeline(
        vae=autoencoder(scaling_factor=0.18),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        unet=network,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(tokenizer, scheduler=None):
    network = unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 0.5, 1.5]),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, CLIPTextModelWithProjection),
        tokenizer_2=tokenizer,
        unet=network,
        scheduler=scheduler or betas(EulerDiscreteScheduler, timestep_spacing="leading", steps_offset=1),
    )


def stable_diffusion_3(tokenizer):
    third, tokenizer_3 = t5(2 * WIDTH)
    network = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",  # version 3.5 has it, and dual attention
        dual_attention_layers=(0,),
    )
    return StableDiffusion3Pipeline(
        transformer=network,
        vae=autoencoder(scaling_factor=1.5, shift_factor=0.06),
        text_encoder=clip(tokenizer, CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, CLIPTextModelWithProjection),
        tokenizer_2=tokenizer,
        text_encoder_3=third,
        tokenizer_3=tokenizer_3,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux(tokenizer, guidance_embeds: bool):
    second, tokenizer_2 = t5()
    network = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        transformer=network,
        vae=autoencoder(scaling_factor=0.36, shift_factor=0.11),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer_2,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance_embeds),
    )


def bert() -> tuple[BertModel, BertTokenizer]:
    """A tiny BERT and its tokenizer of single letters."""
    letters = [letter for letter in "abcdefghijklmnopqrstuvwxyz"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = BertTokenizer({word: number for number, word in enumerate(words)}, model_max_length=77)
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=77, **sizes)), tokenizer


def hunyuan_dit(tokenizer, scheduler=None, **changes):
    first, first_tokenizer = bert()
    second, second_tokenizer = t5()
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 4, "attention_head_dim": 8}
    sizes |= {"num_attention_heads": 2, "hidden_size": 16, "cross_attention_dim": WIDTH}
    sizes |= {"cross_attention_dim_t5": WIDTH, "pooled_projection_dim": 16}
    schedule = {"beta_start": 0.00085, "beta_end": 0.03, "beta_schedule": "scaled_linear"}
    return HunyuanDiTPipeline(
        vae=eight_fold(scaling_factor=0.13),
        text_encoder=first,
        tokenizer=first_tokenizer,
        transformer=HunyuanDiT2DModel(**(sizes | changes)),
        scheduler=scheduler or DDIMScheduler(**schedule, prediction_type="v_prediction", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=second,
        tokenizer_2=second_tokenizer,
    )


def pixart(tokenizer, kind, **size):
    encoder, t5_tokenizer = t5()
    network = PixArtTransformer2DModel(
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        **size,
    )
    return kind(
        tokenizer=t5_tokenizer,
        text_encoder=encoder,
        vae=autoencoder(scaling_factor=0.18),
        transformer=network,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, solver_order=1),
    )


def dit(tokenizer):
    network = DiTTransformer2DModel(
        sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=8
    )
    scheduler = DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False)
    names = {"0": "tench, Tinca tinca", "1": "goldfish"}
    pipeline = DiTPipeline(network, autoencoder(scaling_factor=0.18), scheduler, names)
    pipeline.register_to_config(id2label=names)  # as in the published model_index.json
    return pipeline


def sana(tokenizer):
    encoder, gemma_tokenizer = gemma()
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="conv",
        scaling_factor=0.41407,
    )
    network = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=16,
    )
    solver = {"solver_order": 1, "use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    scheduler = DPMSolverMultistepScheduler(final_sigmas_type="zero", **solver)
    return SanaPipeline(gemma_tokenizer, encoder, vae, network, scheduler)


def pixel_unet(**changes):
    return UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        **changes,
    )


def unconditional(tokenizer):
    return DDIMPipeline(pixel_unet(), DDIMScheduler(clip_sample=False))


def edm(tokenizer, scheduler=None, **changes):
    return ConsistencyModelPipeline(pixel_unet(**changes), scheduler or EDMEulerScheduler())


# Published models with these architectures: (family, function of a tokenizer that builds the pipeline).
BUILDERS: dict[str, tuple[str, Callable]] = {
    "Stable Diffusion 1.5": ("stable_diffusion", stable_diffusion),
    "Stable Diffusion 2.1 (v, zero SNR)": (
        "stable_diffusion",
        lambda tokenizer: stable_diffusion(
            tokenizer, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        ),
    ),
    "Stable Diffusion XL": ("stable_diffusion_xl", stable_diffusion_xl),
    "Playground 2.5": (
        "stable_diffusion_xl",
        lambda tokenizer: stable_diffusion_xl(tokenizer, EDMDPMSolverMultistepScheduler(solver_order=1)),
    ),
    "Stable Diffusion 3.5": ("stable_diffusion_3", stable_diffusion_3),
    "Flux.1 dev": ("flux", lambda tokenizer: flux(tokenizer, guidance_embeds=True)),
    "Flux.1 schnell": ("flux", lambda tokenizer: flux(tokenizer, guidance_embeds=False)),
    "PixArt-Sigma 512": ("pixart", lambda tokenizer: pixart(tokenizer, PixArtSigmaPipeline, sample_size=8)),
    "PixArt-Alpha 1024": (
        "pixart",
        lambda tokenizer: pixart(tokenizer, PixArtAlphaPipeline, sample_size=128, patch_size=16),
    ),
    "Hunyuan-DiT": ("hunyuan_dit", hunyuan_dit),
    "Sana": ("sana", sana),
    "DiT": ("dit", dit),
    "unconditional UNet": ("unconditional", unconditional),
    "EDM, CIFAR-10": ("edm", edm),
    "EDM, ImageNet-64": ("edm", lambda tokenizer: edm(tokenizer, num_class_embeds=10)),
}
