"""Kandinsky 5 for images: a rectified-flow transformer with Qwen2.5-VL and CLIP as its text encoders."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import Kandinsky5T2IPipeline
from torch import Tensor

from teachers.core.denoiser import Condition
from teachers.families.sized_image import SizedImage
from teachers.families.unbatched import encode_each, padded
from teachers.loading.source import Pipelines
from teachers.media import Image

LENGTH = 512  # tokens of a prompt: the default of the pipeline's call
TEXT, POOLED, MASK = "encoder_hidden_states", "pooled_projections", "encoder_attention_mask"


@dataclass(frozen=True)
class KandinskyImage(Image):
    """Images of a pipeline whose output has them as `image`."""

    output = "image"


class Kandinsky5(SizedImage):
    """`Kandinsky5T2IPipeline`. Its sizes are those of the pipeline's list.

    The network has no mask for its text, and the pipeline pads the prompts of a batch to the longest. Here each prompt
    is encoded alone, and the network is called once for each sample with as many tokens as its prompt has.

    Raises:
        ValueError: If the network needs an image, or the pipeline would change the size.
    """

    pipelines: ClassVar[Pipelines] = (Kandinsky5T2IPipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "in_text_dim": ("text_encoder",),
        "in_text_dim2": ("text_encoder_2",),
    }
    passes_sigmas: ClassVar[bool] = False
    pads_prompts: ClassVar[bool] = True

    def __init__(
        self, pipeline: Kandinsky5T2IPipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        if pipeline.transformer.config.visual_cond:
            raise ValueError("visual_cond of the transformer must be False, got True: such a network needs an image")
        super().__init__(pipeline, sigma_data, size)
        height, width = self.size["height"], self.size["width"]
        if (width, height) not in pipeline.resolutions:
            listed = ", ".join(f"{h} x {w}" for w, h in pipeline.resolutions)
            raise ValueError(f"teacher.size must be one of {listed} (height x width), got {height} x {width}")

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network on (1, 1, H, W, C) for each sample."""
        height, width = sample.shape[2:]
        mask, outputs, visual = cond[MASK], [], sample.permute(0, 2, 3, 1)[:, None]
        sides = [torch.arange(side, device=sample.device) for side in (1, height // 2, width // 2)]
        lengths = [mask.shape[1]] * len(mask) if mask.is_meta else mask.sum(1).tolist()
        for row, length in enumerate(lengths):
            own = slice(row, row + 1)
            outputs.append(
                network(
                    hidden_states=visual[own],
                    encoder_hidden_states=cond[TEXT][own, : int(length)],
                    pooled_projections=cond[POOLED][own],
                    timestep=timestep[own],
                    visual_rope_pos=sides,
                    text_rope_pos=torch.arange(int(length), device=sample.device),
                    return_dict=False,
                )
            )
        return torch.cat(outputs)[:, 0].permute(0, 3, 1, 2)

    @property
    def medium(self) -> Image:
        """Images of the teacher's size."""
        return KandinskyImage(*self.image_size)

    def default_side(self) -> int:
        return int(inspect.signature(Kandinsky5T2IPipeline.__call__).parameters["height"].default)

    def latent_shape(self) -> tuple[int, ...]:
        height, width = (self.size[key] // self.compression() for key in ("height", "width"))
        return int(self.stock.transformer.config.in_visual_dim), height, width

    def _check_channels(self) -> None:
        config, channels = self.stock.transformer.config, self.latent_channels()
        if (config.in_visual_dim, config.out_visual_dim) != (channels, channels):
            raise ValueError(
                f"in_visual_dim and out_visual_dim of the transformer must be {channels} for the {channels} latent "
                f"channels of the vae, got {config.in_visual_dim} and {config.out_visual_dim}"
            )

    def unpack(self, native: Tensor) -> Tensor:
        return native[:, 0].permute(0, 3, 1, 2) if native.ndim == 5 else native

    def condition(self, prompts: Sequence[str]) -> Condition:
        if self.device.type == "meta":  # the pipeline cuts embeddings at the number of tokens, a value
            return {key: value.expand(len(prompts), *value.shape[1:]) for key, value in self.meta_condition().items()}
        return encode_each(prompts, self._encode)

    @torch.no_grad()
    def _encode(self, prompt: str) -> Condition:
        text, pooled, _ = self.text_pipeline().encode_prompt([prompt], device=self.device)
        mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
        return {TEXT: padded(text.float(), LENGTH), POOLED: pooled.float(), MASK: padded(mask, LENGTH)}

    def meta_condition(self) -> Condition:
        config = self.stock.transformer.config
        return {
            TEXT: torch.empty(1, LENGTH, config.in_text_dim, device="meta"),
            POOLED: torch.empty(1, config.in_text_dim2, device="meta"),
            MASK: torch.empty(1, LENGTH, dtype=torch.long, device="meta"),
        }
