"""Builders of tiny random pipelines with a size of the call: clips, sounds, and images of some families."""

import copy
from collections.abc import Callable

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    AutoencoderOobleck,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CosineDPMSolverMultistepScheduler,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MotionAdapter,
    StableAudioDiTModel,
    StableAudioPipeline,
    UNetMotionModel,
    UniPCMultistepScheduler,
    VQModel,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from transformers import GemmaTokenizer, LlamaConfig, LlamaModel, T5TokenizerFast, UMT5Config, UMT5EncoderModel

from tests.teachers.tiny_flow_transformers import BUILDERS as FLOW_TRANSFORMERS
from tests.teachers.tiny_flows import BUILDERS as FLOWS
from tests.teachers.tiny_hunyuan import hunyuan_video_15
from tests.teachers.tiny_pipelines import WIDTH, autoencoder, clip, t5
from tests.teachers.tiny_sounds import ace_step, audioldm2

LENGTH = 16  # tokens of a prompt


def text_encoder():
    """A tiny T5 encoder and its tokenizer, which pads prompts to `LENGTH`."""
    encoder, tokenizer = t5()
    tokenizer.model_max_length = LENGTH
    return encoder, tokenizer


def umt5() -> tuple[UMT5EncoderModel, T5TokenizerFast]:
    _, tokenizer = text_encoder()
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": WIDTH, "num_layers": 1, "num_heads": 4}
    return UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **sizes)), tokenizer


RESIDUAL = {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16}


def wan(channels: int = 16, experts: bool = False, residual: bool = False, **options) -> WanPipeline:
    encoder, tokenizer = umt5()
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=torch.linspace(-0.5, 0.5, channels).tolist(),
        latents_std=torch.linspace(0.5, 1.5, channels).tolist(),
        **(RESIDUAL if residual else {}),
    )
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": WIDTH, "freq_dim": 256, "ffn_dim": 32}
    sizes |= {"in_channels": channels, "out_channels": channels, "num_layers": 2, "rope_max_seq_len": 32}
    network, low = (
        WanTransformer3DModel(cross_attn_norm=True, qk_norm="rms_norm_across_heads", **sizes) for _ in range(2)
    )
    if experts:
        options |= {"transformer_2": low, "boundary_ratio": 0.875}
    solver = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return WanPipeline(tokenizer, encoder, vae, solver, network, **options)


def ltx(timestep_conditioning: bool = False) -> LTXPipeline:
    encoder, tokenizer = text_encoder()
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=timestep_conditioning,
        patch_size=1,
        patch_size_t=1,
        scaling_factor=0.8,
    )
    vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 1.5, 8))
    network = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
        num_layers=2,
        caption_channels=WIDTH,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    return LTXPipeline(scheduler, vae, encoder, tokenizer, network)


def cogvideox(**changes) -> CogVideoXPipeline:
    encoder, tokenizer = text_encoder()
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=1.15258426,
    )
    sizes = {"sample_width": 2, "sample_height": 2, "sample_frames": 9, "patch_size": 2}
    network = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=2,
        max_text_seq_length=LENGTH,
        **(sizes | changes),
    )
    return CogVideoXPipeline(tokenizer, encoder, vae, network, shifted_ddim(snr_shift_scale=3.0))


def shifted_ddim(**changes) -> CogVideoXDDIMScheduler:
    """The schedule of CogVideoX and CogView3-Plus, which predict v."""
    return CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        **changes,
    )


def cogview3_plus(**changes) -> CogView3PlusPipeline:
    encoder, tokenizer = t5()
    sizes = {"in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
    sizes |= {"text_embed_dim": WIDTH, "time_embed_dim": 32, "condition_dim": 8, "sample_size": 8}
    network = CogView3PlusTransformer2DModel(**(sizes | {"pos_embed_max_size": 16} | changes))
    vae = autoencoder(scaling_factor=1.2)
    return CogView3PlusPipeline(tokenizer, encoder, vae, network, shifted_ddim(snr_shift_scale=4.0))


def movq(levels: int = 4, **changes) -> VQModel:
    """A tiny VQ autoencoder, whose normalisations in the decoder have 32 groups."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    sizes = {"block_out_channels": (32,) * levels, "latent_channels": 4, "num_vq_embeddings": 8}
    return VQModel(norm_type="spatial", **(sizes | blocks | changes))


def kandinsky3(**changes) -> Kandinsky3Pipeline:
    encoder, tokenizer = t5()
    sizes = {"time_embedding_dim": 32, "groups": 2, "attention_head_dim": 8, "layers_per_block": 2}
    sizes |= {"block_out_channels": (16, 16, 16, 16), "cross_attention_dim": 16, "encoder_hid_dim": WIDTH}
    network = Kandinsky3UNet(**(sizes | changes))
    for name, parameter in network.named_parameters():
        if "context_mlp" in name:  # zero in a new network
            parameter.data.normal_(std=0.2)
        if "resnet_blocks.3.projection" in name:  # its normalisations of few pixels amplify rounding
            parameter.data.mul_(0.1)
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    return Kandinsky3Pipeline(tokenizer, encoder, network, scheduler, movq())


def hunyuan_video(tokenizer, guidance_embeds: bool = True) -> HunyuanVideoPipeline:
    letters = {
        letter: i for i, letter in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyz"])
    }
    llama_tokenizer = GemmaTokenizer(letters, [])
    llama_tokenizer.padding_side = "right"
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2}
    llama = LlamaModel(LlamaConfig(vocab_size=len(llama_tokenizer), **sizes))
    vae = AutoencoderKLHunyuanVideo(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=0.476986,
    )
    network = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=guidance_embeds,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 4, 4),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 77  # the pipeline pads to this length
    return HunyuanVideoPipeline(llama, llama_tokenizer, network, vae, scheduler, clip(tokenizer), tokenizer)


def animatediff(tokenizer) -> AnimateDiffPipeline:
    blocks = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    network = UNetMotionModel(
        sample_size=8,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        cross_attention_dim=WIDTH,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
        **blocks,
    )
    motion = {"motion_layers_per_block": 1, "motion_norm_num_groups": 4, "motion_num_attention_heads": 2}
    adapter = MotionAdapter(block_out_channels=(8, 16), **motion)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False)
    vae = autoencoder(scaling_factor=0.18)
    return AnimateDiffPipeline(vae, clip(tokenizer), tokenizer, network, adapter, scheduler)


def stable_audio() -> StableAudioPipeline:
    encoder, tokenizer = text_encoder()
    network = StableAudioDiTModel(
        sample_size=16,
        in_channels=3,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        out_channels=3,
        cross_attention_dim=WIDTH,
        time_proj_dim=8,
        global_states_input_dim=2 * WIDTH,
        cross_attention_input_dim=WIDTH,
    )
    vae = AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[2, 4],
        decoder_channels=3,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=400,
    )
    projection = StableAudioProjectionModel(WIDTH, WIDTH, min_value=0, max_value=32)
    scheduler = CosineDPMSolverMultistepScheduler(
        solver_order=2, prediction_type="v_prediction", sigma_schedule="exponential", sigma_min=0.3, sigma_max=500
    )
    return StableAudioPipeline(vae, encoder, projection, tokenizer, network, scheduler)


CLIP = {"height": 16, "width": 32, "frames": 9}
ROTARY = {"use_rotary_positional_embeddings": True}
# Published models with these architectures: (family, function of a tokenizer that builds the pipeline, size).
BUILDERS: dict[str, tuple[str, Callable, dict[str, float]]] = (
    {
        "Wan 2.1": ("wan", lambda _: wan(), CLIP | {"max_sequence_length": LENGTH}),
        "Wan 2.2 5B": (
            "wan",
            lambda _: wan(12, residual=True, expand_timesteps=True),
            {"height": 32, "width": 64, "frames": 9, "max_sequence_length": LENGTH},
        ),
        "Wan 2.2 A14B": ("wan", lambda _: wan(experts=True), CLIP | {"max_sequence_length": LENGTH}),
        "LTX": ("ltx", lambda _: ltx(), {"height": 32, "width": 64, "frames": 9, "rate": 24}),
        "LTX 0.9.1": ("ltx", lambda _: ltx(True), {"height": 32, "width": 32, "frames": 9}),
        "CogVideoX 2B": ("cogvideox", lambda _: cogvideox(), {}),
        "CogVideoX 5B": ("cogvideox", lambda _: cogvideox(**ROTARY), {}),
        "CogVideoX 1.5": ("cogvideox", lambda _: cogvideox(patch_size_t=2, patch_bias=False, **ROTARY), {}),
        "CogView3-Plus": ("cogview3_plus", lambda _: cogview3_plus(), {"height": 16, "width": 32}),
        "Kandinsky 3": ("kandinsky3", lambda _: kandinsky3(), {"height": 64, "width": 128}),
        "HunyuanVideo": ("hunyuan_video", hunyuan_video, CLIP),
        "HunyuanVideo, guided": ("hunyuan_video", lambda tokenizer: hunyuan_video(tokenizer, False), CLIP),
        "HunyuanVideo 1.5": (
            "hunyuan_video_15",
            lambda _: hunyuan_video_15(),
            {"height": 32, "width": 32, "frames": 5},
        ),
        "AnimateDiff": ("animatediff", animatediff, {"height": 16, "width": 16, "frames": 3}),
        "Stable Audio": ("stable_audio", lambda _: stable_audio(), {}),
        "Stable Audio, short": ("stable_audio", lambda _: stable_audio(), {"seconds": 0.2}),
        "AudioLDM 2": ("audioldm2", lambda _: audioldm2(), {}),
        "AudioLDM 2, short": ("audioldm2", lambda _: audioldm2(), {"seconds": 0.25}),
        "ACE-Step": ("ace_step", lambda _: ace_step(), {"seconds": 0.25}),
        "ACE-Step turbo": ("ace_step", lambda _: ace_step(is_turbo=True), {"seconds": 0.3}),
    }
    | FLOWS
    | FLOW_TRANSFORMERS
)
