"""Folders of published pipelines of clips and sounds at full size, with configurations only.

The sizes are those of the published checkpoints Wan-AI/Wan2.1-T2V-1.3B-Diffusers and 14B, Lightricks/LTX-Video,
THUDM/CogVideoX-2b and stabilityai/stable-audio-open-1.0. Where nothing is given, they are the defaults of the class.
"""

import json
from pathlib import Path
from typing import Any

import torch
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
from transformers import T5Config, UMT5Config

from teachers.pocket_video.parts import make_tokenizer

XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
BASE = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}


def wan(folder: Path) -> None:
    """Write the pipeline folder of Wan 2.1 1.3B."""
    wan_14b(folder, num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30, text_dim=4096)


def wan_14b(folder: Path, **config: Any) -> None:
    """Write the pipeline folder of Wan 2.1 14B, or of another size of it."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    components(folder, transformer=lambda: WanTransformer3DModel(**config), vae=AutoencoderKLWan)
    index(folder, "WanPipeline", scheduler, UMT5Config(vocab_size=256384, **XXL), boundary_ratio=None)


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
    components(folder, transformer=LTXVideoTransformer3DModel, vae=AutoencoderKLLTXVideo)
    index(folder, "LTXPipeline", scheduler, T5Config(vocab_size=32128, **XXL))


def cogvideox(folder: Path) -> None:
    """Write the pipeline folder of CogVideoX 2B."""
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0, timestep_spacing="trailing"
    )
    components(folder, transformer=CogVideoXTransformer3DModel, vae=AutoencoderKLCogVideoX)
    index(folder, "CogVideoXPipeline", scheduler, T5Config(vocab_size=32128, **XXL))


def stable_audio(folder: Path) -> None:
    """Write the pipeline folder of Stable Audio Open 1.0."""
    scheduler = CosineDPMSolverMultistepScheduler(sigma_min=0.3, sigma_max=500, sigma_schedule="exponential")
    components(folder, transformer=StableAudioDiTModel, vae=AutoencoderOobleck, projection_model=lambda:
        StableAudioProjectionModel(text_encoder_dim=768, conditioning_dim=768, min_value=0, max_value=512)
    )  # fmt: skip
    index(folder, "StableAudioPipeline", scheduler, T5Config(vocab_size=32128, **BASE))


def components(folder: Path, **makers: Any) -> None:
    """Write the configurations of diffusers components, each from a function that builds it."""
    with torch.device("meta"):
        for name, make in makers.items():
            make().save_config(folder / name)


def index(folder: Path, pipeline: str, scheduler: Any, text: T5Config, **rest: Any) -> None:
    """Write the scheduler, the configuration of the text encoder, a tokenizer, and model_index.json."""
    scheduler.save_pretrained(folder / "scheduler")
    text.save_pretrained(folder / "text_encoder")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    encoder = "UMT5EncoderModel" if isinstance(text, UMT5Config) else "T5EncoderModel"
    parts: dict[str, Any] = {
        "_class_name": pipeline,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "text_encoder": ["transformers", encoder],
        "tokenizer": ["transformers", "T5TokenizerFast"],
    }
    for name in ("transformer", "vae", "projection_model"):
        if (folder / name).is_dir():
            config = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
            library = "stable_audio" if name == "projection_model" else "diffusers"
            parts[name] = [library, config["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(parts | rest), encoding="utf-8")
