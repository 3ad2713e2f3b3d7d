"""Networks whose tangents are measured by `benchmarks.tangent`: random weights, real architectures, small sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    LTXVideoTransformer3DModel,
    SD3Transformer2DModel,
    StableAudioDiTModel,
    UNet2DConditionModel,
    UNet2DModel,
    WanTransformer3DModel,
)
from torch import Tensor, nn

from teachers.core.denoiser import Condition
from teachers.families import ltx
from teachers.families.cogvideox import CogVideoX
from teachers.families.stable_audio import StableAudio
from teachers.families.wan import Wan

BATCH = 4
IMAGES = (BATCH, 4, 32, 32)


def call_network(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
    """Call a network of images."""
    output: Tensor = network(sample, timestep=timestep, **cond, return_dict=False)[0]
    return output


@dataclass(frozen=True)
class Case:
    """A network and its inputs.

    Attributes:
        network: The network.
        cond: Its condition.
        shape: The shape of its sample.
        call: Calls the network with a sample, timesteps from 0 to 1000 and the condition, as the teacher's family does.
    """

    network: Any
    cond: Condition
    shape: tuple[int, ...] = IMAGES
    call: Callable[[Any, Tensor, Tensor, Condition], Tensor] = call_network


def unet() -> Case:
    return Case(UNet2DModel(
        sample_size=32, in_channels=4, out_channels=4, block_out_channels=(64, 128, 128), attention_head_dim=32,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ), {})  # fmt: skip


def unet_condition() -> Case:
    return Case(UNet2DConditionModel(
        sample_size=32, block_out_channels=(64, 128, 128), layers_per_block=1, cross_attention_dim=64,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ), {"encoder_hidden_states": torch.randn(BATCH, 16, 64)})  # fmt: skip


def sd3() -> Case:
    return Case(SD3Transformer2DModel(
        sample_size=32, in_channels=4, out_channels=4, num_layers=4, attention_head_dim=64, num_attention_heads=4,
        joint_attention_dim=64, caption_projection_dim=256, pooled_projection_dim=64, pos_embed_max_size=32,
        qk_norm="rms_norm",
    ), {
        "encoder_hidden_states": torch.randn(BATCH, 16, 64),
        "pooled_projections": torch.randn(BATCH, 64),
    })  # fmt: skip


def wan() -> Case:
    network = WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=64, ffn_dim=1024, num_layers=4, text_dim=64, rope_max_seq_len=64
    )
    return Case(network, {"encoder_hidden_states": torch.randn(2, 32, 64)}, (2, 16, 3, 16, 16), Wan.call)


def ltx_video() -> Case:
    network = LTXVideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=4, attention_head_dim=64, cross_attention_dim=256,
        num_layers=4, caption_channels=64,
    )  # fmt: skip
    mask = torch.ones(2, 32)
    mask[:, 20:] = 0
    cond = {"encoder_hidden_states": torch.randn(2, 32, 64), "encoder_attention_mask": mask}
    return Case(network, cond, (2, 16, 3, 8, 8), partial(ltx.call, scale=(8 / 25, 32.0, 32.0)))


def cogvideox() -> Case:
    network = CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=64, time_embed_dim=128, text_embed_dim=64, num_layers=4,
        sample_width=16, sample_height=16, sample_frames=9, max_text_seq_length=32,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    return Case(network, {"encoder_hidden_states": torch.randn(2, 32, 64)}, (2, 16, 3, 16, 16), CogVideoX.call)


def stable_audio() -> Case:
    network = StableAudioDiTModel(
        sample_size=256, in_channels=16, out_channels=16, num_layers=4, attention_head_dim=64, num_attention_heads=4,
        num_key_value_attention_heads=2, cross_attention_dim=64, global_states_input_dim=128,
        cross_attention_input_dim=64,
    )  # fmt: skip
    cond = {"encoder_hidden_states": torch.randn(2, 18, 64), "global_hidden_states": torch.randn(2, 1, 128)}
    return Case(network, cond, (2, 16, 256), StableAudio.call)


IMAGE_NETWORKS = {"UNet2DModel": unet, "UNet2DConditionModel": unet_condition, "SD3Transformer2DModel": sd3}
MEDIA_NETWORKS = {
    "WanTransformer3DModel": wan,
    "LTXVideoTransformer3DModel": ltx_video,
    "CogVideoXTransformer3DModel": cogvideox,
    "StableAudioDiTModel": stable_audio,
}
