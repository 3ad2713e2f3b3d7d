"""One .safetensors file in the original layout of a model, for ComfyUI, A1111 and `from_single_file`.

diffusers renamed the tensors of published checkpoints; this module gives them their first names again. The layouts are
those that `diffusers.loaders.single_file_utils` reads: Stable Diffusion 1.x and 2.x (CompVis), XL (generative-models),
3 (MMDiT) and Flux.1 (Black Forest Labs).
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from distill.exporting.comfy import known_schedule
from distill.exporting.transformer_layouts import flux_layout, sd3_layout
from teachers.support.files import atomic_write

Weights = dict[str, Tensor]
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_layout(weights: Mapping[str, Tensor], layers: int) -> Weights:
    """A UNet2DConditionModel's weights with the names of the original model.

    Args:
        weights: The state dict.
        layers: `layers_per_block` of its config.

    Raises:
        ValueError: If the original layout has no name for a tensor, or no place for an embedded guidance scale.
    """
    guidance = weights.get("time_embedding.cond_proj.weight")
    if guidance is not None and bool(guidance.any()):
        raise ValueError(
            "a student with an input for the guidance scale (method.guidances) cannot be a single file: the original "
            "layout has no place for that input; export it with --format diffusers"
        )
    attended = {name.split(".")[1] for name in weights if name.startswith("up_blocks.") and ".attentions." in name}

    def rename(name: str) -> str:
        if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", name):
            side, block, part, layer = found.groups()
            index = int(block) * (layers + 1) + int(layer) + (side == "down")
            if part.endswith("samplers"):
                index += layers
            place = {"resnets": "0", "attentions": "1", "downsamplers": "0.op", "upsamplers": "2.conv"}[part]
            if part == "upsamplers" and block not in attended:
                place = "1.conv"
            rest = name[found.end() :].removeprefix("conv.") if part.endswith("samplers") else name[found.end() :]
            name = f"{'input' if side == 'down' else 'output'}_blocks.{index}.{place}.{rest}"
            return _swap(name, RESNET) if part == "resnets" else name
        start = next((key for key in UNET if name.startswith(f"{key}.")), None)
        if start is None:
            raise ValueError(f"the original layout of this UNet has no name for {name}")
        rest = name.removeprefix(start)
        return UNET[start] + (_swap(rest, RESNET) if "resnets" in start else rest)

    return {rename(name): value for name, value in weights.items() if "cond_proj" not in name}


def vae_layout(weights: Mapping[str, Tensor], blocks: int) -> Weights:
    """An AutoencoderKL's weights with the names of the original model.

    Args:
        weights: The state dict.
        blocks: Number of its up blocks.
    """
    return dict(_vae_entry(name, value, blocks) for name, value in weights.items())


def _vae_entry(name: str, value: Tensor, blocks: int) -> tuple[str, Tensor]:
    new = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", new)
    new = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{blocks - 1 - int(m[1])}.block.", new)
    new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample.", new)
    new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
    new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    head, attention, rest = new.partition("mid_block.attentions.0.")
    if not attention:
        return new, value
    kernel = value[..., None, None] if value.ndim == 2 else value  # the original has convolutions
    return f"{head}mid.attn_1.{_swap(rest, VAE_ATTENTION)}", kernel


def clip_layout(weights: Mapping[str, Tensor], projection: bool = False) -> Weights:
    """A CLIP text encoder's weights with the names of transformers' first versions.

    Args:
        weights: The state dict.
        projection: Whether to keep the projection of the pooled output.
    """
    named = {name.removeprefix("text_model."): value for name, value in weights.items() if "position_ids" not in name}
    projected = {name: named.pop(name) for name in list(named) if name.startswith("text_projection")}
    return {f"text_model.{name}": value for name, value in named.items()} | (projected if projection else {})


def open_clip_layout(weights: Mapping[str, Tensor]) -> Weights:
    """A CLIP text encoder's weights with OpenCLIP's names: queries, keys and values are one matrix."""
    renamed: Weights = {}
    plain = {key.removeprefix("text_model."): value for key, value in clip_layout(weights, projection=True).items()}
    for name, value in plain.items():
        if name.startswith("text_projection"):
            renamed["text_projection"] = value.T
        elif found := re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            parts = [plain[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            renamed[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[2]}"] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            renamed[_swap(name, OPEN_CLIP)] = value
    return renamed


def _swap(name: str, names: Mapping[str, str]) -> str:
    """`name` with every dotted part of `names` replaced."""
    for old, new in names.items():
        name = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", new, name)
    return name


def _stable_diffusion(pipe: Any) -> Weights:
    wide = pipe.text_encoder.config.hidden_size == 1024  # version 2 has OpenCLIP's encoder
    text = pipe.text_encoder.state_dict()
    encoder = prefixed("cond_stage_model.model.", open_clip_layout(text)) if wide else {}
    return _unet_and_vae(pipe) | (encoder or prefixed("cond_stage_model.transformer.", clip_layout(text)))


def _stable_diffusion_xl(pipe: Any) -> Weights:
    return (
        _unet_and_vae(pipe)
        | prefixed("conditioner.embedders.0.transformer.", clip_layout(pipe.text_encoder.state_dict()))
        | prefixed("conditioner.embedders.1.model.", open_clip_layout(pipe.text_encoder_2.state_dict()))
    )


def _unet_and_vae(pipe: Any) -> Weights:
    unet, vae = pipe.unet, pipe.vae
    return prefixed("model.diffusion_model.", unet_layout(unet.state_dict(), unet.config.layers_per_block)) | prefixed(
        "first_stage_model.", vae_layout(vae.state_dict(), len(vae.config.up_block_types))
    )


def _stable_diffusion_3(pipe: Any) -> Weights:
    first = pipe.text_encoder.state_dict()
    projection = first["text_projection.weight"]
    if not torch.equal(projection, torch.eye(len(projection)).to(projection)):
        raise ValueError(
            "text_projection of text_encoder must be the identity for a single file of Stable Diffusion 3: the "
            "original layout does not store it"
        )
    second = clip_layout(pipe.text_encoder_2.state_dict(), projection=True)
    return _transformer_and_vae(pipe, sd3_layout, "first_stage_model.") | _text_encoders(
        clip_l=clip_layout(first), clip_g=second, t5xxl=_t5(pipe.text_encoder_3)
    )


def _flux(pipe: Any) -> Weights:
    return _transformer_and_vae(pipe, flux_layout, "vae.") | _text_encoders(
        clip_l=clip_layout(pipe.text_encoder.state_dict()), t5xxl=_t5(pipe.text_encoder_2)
    )


def _transformer_and_vae(pipe: Any, layout: Callable[[Weights], Weights], vae: str) -> Weights:
    blocks = len(pipe.vae.config.up_block_types)
    transformer = prefixed("model.diffusion_model.", layout(pipe.transformer.state_dict()))
    return transformer | prefixed(vae, vae_layout(pipe.vae.state_dict(), blocks))


def _t5(encoder: Any) -> Weights:
    """T5's weights, with the table of tokens under both of its names, as in the published files."""
    return {} if encoder is None else dict(encoder.state_dict())


def _text_encoders(**encoders: Weights) -> Weights:
    return {
        name: value
        for key, weights in encoders.items()
        for name, value in prefixed(f"text_encoders.{key}.transformer.", weights).items()
    }


def prefixed(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    """Weights with a prefix before every name."""
    return {f"{prefix}{name}": value for name, value in weights.items()}


LAYOUTS: dict[str, Callable[[Any], Weights]] = {
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
    "StableDiffusion3Pipeline": _stable_diffusion_3,
    "FluxPipeline": _flux,
}


def original_layout(pipe: Any) -> Weights:
    """All weights of a pipeline with the names of the original model.

    Raises:
        ValueError: If its class has no original layout, or a tensor has no name there.
    """
    check_layout(pipe)
    return LAYOUTS[type(pipe).__name__](pipe)


def check_layout(pipe: Any) -> None:
    """Raise ValueError if a pipeline's class or its autoencoder has no original layout."""
    kind = type(pipe).__name__
    if kind not in LAYOUTS:
        raise ValueError(f"--format single-file needs one of {', '.join(LAYOUTS)}, got a {kind}")
    if not isinstance(pipe.vae, AutoencoderKL):
        raise ValueError(
            f"--format single-file needs a pipeline with an AutoencoderKL, got an {type(pipe.vae).__name__}, for which "
            "the original layout has no names"
        )


def write_single_file(pipe: Any, file: Path) -> None:
    """Write a pipeline as one file in the original layout; the file's metadata names the format only."""
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in original_layout(pipe).items()}
    if "XL" in type(pipe).__name__ and pipe.scheduler.config.prediction_type == "v_prediction":
        weights["v_pred"] = torch.zeros(0)  # by which ComfyUI and A1111 know the prediction of such files
        if (known_schedule(pipe.scheduler.alphas_cumprod) or {}).get("zsnr"):
            weights["ztsnr"] = torch.zeros(0)  # and the zero terminal SNR
    with atomic_write(file) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
