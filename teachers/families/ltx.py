"""LTX-Video: a rectified-flow transformer of clips on packed latents, with a T5 text encoder."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import LTXPipeline
from torch import Tensor, nn

from teachers.core.denoiser import Call, Condition
from teachers.families.latent_video import LatentVideo
from teachers.loading.source import Pipelines

Scale = tuple[float, float, float]  # seconds and pixels of one latent frame, row and column


def call(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition, scale: Scale) -> Tensor:
    """Call the network on tokens (B, F H W, C) with the numbers of latent frames, rows and columns.

    Args:
        network: The network.
        sample: Native noisy latents, (B, C, F, H, W).
        timestep: Native timesteps, (B,).
        cond: The condition.
        scale: The size of one latent frame, row and column, for the rotary embedding.

    Returns:
        The network's output, (B, C, F, H, W).
    """
    frames, height, width = sample.shape[2:]
    output: Tensor = network(
        sample.flatten(2).mT,
        timestep=timestep,
        **cond,
        num_frames=frames,
        height=height,
        width=width,
        rope_interpolation_scale=scale,
        return_dict=False,
    )[0]
    return output.mT.unflatten(2, (frames, height, width))


class LTX(LatentVideo):
    """`LTXPipeline`, with tokens of one latent pixel.

    Raises:
        ValueError: If the network has patches of several latent pixels.
    """

    pipelines: ClassVar[Pipelines] = (LTXPipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"caption_channels": ("text_encoder",)}
    passes_sigmas: ClassVar[bool] = True
    takes_variance_preserving: ClassVar[bool] = False
    refuses_steps: ClassVar[bool] = False
    fewest_steps: ClassVar[int] = 2  # one step divides by zero with shift_terminal

    def __init__(self, pipeline: LTXPipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None) -> None:
        config = pipeline.transformer.config
        if (config.patch_size, config.patch_size_t) != (1, 1):
            raise ValueError(
                f"patch_size and patch_size_t of the transformer must be 1, got {config.patch_size} and "
                f"{config.patch_size_t}"
            )
        super().__init__(pipeline, sigma_data, size)

    def network_call(self) -> Call:
        side = float(self.compression())
        return partial(call, scale=(self.time_compression() / self.size["rate"], side, side))

    def side_unit(self) -> int:
        return math.lcm(32, super().side_unit())

    def compression(self) -> int:
        return int(self.stock.vae_spatial_compression_ratio)

    def time_compression(self) -> int:
        return int(self.stock.vae_temporal_compression_ratio)

    def unpack(self, native: Tensor) -> Tensor:
        return native.mT.unflatten(2, self.shape[1:]) if native.ndim == 3 else native

    def condition(self, prompts: Sequence[str]) -> Condition:
        with torch.no_grad():
            text, mask, _, _ = self.text_pipeline().encode_prompt(
                list(prompts), do_classifier_free_guidance=False, device=self.device
            )
        return {"encoder_hidden_states": text.float(), "encoder_attention_mask": mask}

    def _affine(self) -> tuple[Tensor, Tensor]:
        vae: Any = self.stock.vae  # its scale and offset are buffers
        lead = (1, -1, 1, 1, 1)
        scale = vae.latents_std.float() / vae.config.scaling_factor
        return scale.to(self.device).reshape(lead), vae.latents_mean.float().to(self.device).reshape(lead)

    def _image(self, native: Tensor) -> Tensor:
        vae: Any = self.stock.vae
        # the pipeline's default decode_timestep, for autoencoders of version 0.9.1 and later
        timestep = torch.zeros(len(native)).to(native) if vae.config.timestep_conditioning else None
        decoded: Tensor = vae.decode(native.to(self.device, vae.dtype), timestep, return_dict=False)[0]
        return decoded.float()
