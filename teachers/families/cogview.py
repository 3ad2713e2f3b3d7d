"""`CogView`: the common code of CogView3-Plus and CogView4, whose networks receive the size of an image."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch

from teachers.core.denoiser import Condition
from teachers.families.sized_image import SizedImage


class CogView(SizedImage):
    """A pipeline whose condition has the size of an image, as its original and its target size, without a crop.

    Attributes:
        unit: Pixels of which the pipeline requires multiples.
    """

    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_embed_dim": ("text_encoder",)}
    stream: ClassVar[int] = 0
    network_patch: ClassVar[int | None] = 2
    unit: ClassVar[int]

    def default_side(self) -> int:
        return int(self.stock.transformer.config.sample_size) * self.compression()

    def side_unit(self) -> int:
        return math.lcm(self.unit, super().side_unit())

    def latent_shape(self) -> tuple[int, ...]:
        return int(self.stock.transformer.config.in_channels), *super().latent_shape()[1:]

    def size_entries(self, rows: int, device: torch.device | str) -> Condition:
        """The entries of the condition of `rows` prompts that say the size of an image."""
        size = torch.tensor([[self.size["height"], self.size["width"]]], dtype=torch.float32, device=device)
        size = size.repeat(rows, 1)
        return {"original_size": size, "target_size": size, "crop_coords": torch.zeros_like(size)}
