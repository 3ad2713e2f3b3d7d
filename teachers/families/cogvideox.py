"""CogVideoX 2B, 5B and 1.5: a transformer of clips that predicts v, with a T5 text encoder."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import CogVideoXPipeline
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor

from teachers.core.denoiser import Condition
from teachers.families.latent_video import LatentVideo
from teachers.loading.source import Pipelines


def rotary_embedding(config: Any, frames: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rotary embedding that the pipeline passes to its network.

    Args:
        config: The network's config.
        frames: Latent frames.
        height: Latent rows.
        width: Latent columns.
        device: Where the embedding goes.
    """
    rows, columns = height // config.patch_size, width // config.patch_size
    base = config.sample_height // config.patch_size, config.sample_width // config.patch_size
    if config.patch_size_t is None:
        more: dict[str, Any] = {
            "crops_coords": get_resize_crop_region_for_grid((rows, columns), base[1], base[0]),
            "temporal_size": frames,
        }
    else:  # version 1.5
        temporal = math.ceil(frames / config.patch_size_t)
        more = {"crops_coords": None, "temporal_size": temporal, "grid_type": "slice", "max_size": base}
    cosine, sine = get_3d_rotary_pos_embed(
        embed_dim=config.attention_head_dim, grid_size=(rows, columns), device=device, **more
    )
    return cosine, sine


class CogVideoX(LatentVideo):
    """`CogVideoXPipeline`. The default size is that of the network's config; version 1.5 pads its latent frames."""

    pipelines: ClassVar[Pipelines] = (CogVideoXPipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_embed_dim": ("text_encoder",)}
    takes_flow: ClassVar[bool] = False
    stream: ClassVar[int] = 0
    usual_rate: ClassVar[float] = 8.0

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network on (B, F, C, H, W)."""
        config = network.config
        rotary = None
        if config.use_rotary_positional_embeddings:
            frames, height, width = sample.shape[2:]
            rotary = rotary_embedding(config, frames, height, width, sample.device)
        output: Tensor = network(
            sample.transpose(1, 2), timestep=timestep, **cond, image_rotary_emb=rotary, return_dict=False
        )[0]
        return output.transpose(1, 2)

    def default_size(self) -> dict[str, float]:
        config, factor = self.stock.transformer.config, self.compression()
        return {
            "height": config.sample_height * factor,
            "width": config.sample_width * factor,
            "frames": config.sample_frames,
            "rate": self.usual_rate,
        }

    def patch(self) -> tuple[int, int]:
        config = self.stock.transformer.config
        return int(config.patch_size_t or 1), int(config.patch_size)

    @property
    def padding(self) -> int:
        """Latent frames before the first that make their number a multiple of the patch's; decoding drops them."""
        frames = (int(self.size["frames"]) - 1) // self.time_compression() + 1
        return -frames % (self.stock.transformer.config.patch_size_t or 1)

    def latent_shape(self) -> tuple[int, ...]:
        channels, frames, height, width = super().latent_shape()
        return channels, frames + self.padding, height, width

    def unpack(self, native: Tensor) -> Tensor:
        return native.transpose(1, 2)

    def condition(self, prompts: Sequence[str]) -> Condition:
        length = self.stock.transformer.config.max_text_seq_length
        with torch.no_grad():
            text, _ = self.text_pipeline().encode_prompt(
                list(prompts), None, False, max_sequence_length=length, device=self.device
            )
        return {"encoder_hidden_states": text.float()}

    def _mean(self, images: Tensor) -> Tensor:
        mean = super()._mean(images)
        return torch.cat([mean[:, :, :1].expand(-1, -1, self.padding, -1, -1), mean], dim=2)

    def _image(self, native: Tensor) -> Tensor:
        return super()._image(native[:, :, self.padding :])

    def size_call(self) -> dict[str, Any]:
        size, default = super().size_call(), self.default_size()
        changed = {} if all(self.size[key] == default[key] for key in ("height", "width", "frames")) else size
        length = self.stock.transformer.config.max_text_seq_length
        return changed if length == 226 else changed | {"max_sequence_length": length}
