"""Folders of published pipelines of clips and sounds at full size, with configurations only.

The sizes are those of the published checkpoints Wan-AI/Wan2.1-T2V-1.3B-Diffusers and 14B, Lightricks/LTX-Video,
THUDM/CogVideoX-2b and stabilityai/stable-audio-open-1.0. Where nothing is given, they are the defaults of the class.
"""

from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    AutoencoderOobleck,
    CogVideoXDDIMScheduler,
    CogVideoXTransformer3DModel,
    CosineDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LTXVideoTransformer3DModel,
    StableAudioDiTModel,
    StableAudioProjectionModel,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from transformers import UMT5Config

from benchmarks.full_size_parts import XXL, t5, write
from teachers.pocket_video.parts import make_tokenizer

BASE = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}


def wan(folder: Path) -> None:
    """Write the pipeline folder of Wan 2.1 1.3B."""
    wan_14b(folder, num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30, text_dim=4096)


def wan_14b(folder: Path, **config: Any) -> None:
    """Write the pipeline folder of Wan 2.1 14B, or of another size of it."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    texts = {"": (UMT5Config(vocab_size=256384, **XXL), "UMT5EncoderModel", make_tokenizer())}
    parts = {"transformer": lambda: WanTransformer3DModel(**config), "vae": AutoencoderKLWan}
    write(folder, "WanPipeline", scheduler, texts, parts, boundary_ratio=None)


def ltx(folder: Path) -> None:
    """Write the pipeline folder of LTX-Video."""
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    parts = {"transformer": LTXVideoTransformer3DModel, "vae": AutoencoderKLLTXVideo}
    write(folder, "LTXPipeline", scheduler, {"": t5()}, parts)


def cogvideox(folder: Path) -> None:
    """Write the pipeline folder of CogVideoX 2B."""
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0, timestep_spacing="trailing"
    )
    parts = {"transformer": CogVideoXTransformer3DModel, "vae": AutoencoderKLCogVideoX}
    write(folder, "CogVideoXPipeline", scheduler, {"": t5()}, parts)


def stable_audio(folder: Path) -> None:
    """Write the pipeline folder of Stable Audio Open 1.0."""
    scheduler = CosineDPMSolverMultistepScheduler(sigma_min=0.3, sigma_max=500, sigma_schedule="exponential")
    parts = {
        "transformer": StableAudioDiTModel,
        "vae": AutoencoderOobleck,
        "projection_model": lambda: StableAudioProjectionModel(
            text_encoder_dim=768, conditioning_dim=768, min_value=0, max_value=512
        ),
    }
    config, kind, tokenizer = t5(**BASE)
    tokenizer.model_max_length = 128
    write(folder, "StableAudioPipeline", scheduler, {"": (config, kind, tokenizer)}, parts)
