"""`CogView`: the common code of CogView3-Plus and CogView4, whose networks receive the size of an image."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from teachers.core.denoiser import Condition
from teachers.families.sized_image import SizedImage


class CogView(SizedImage):
    """A pipeline whose condition has the size of an image, as its original and its target size, without a crop.

    Attributes:
        unit: Pixels of which the pipeline requires multiples.

    Raises:
        ValueError: If the network has other patches than 2 x 2.
    """

    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_embed_dim": ("text_encoder",)}
    stream: ClassVar[int] = 0
    unit: ClassVar[int]

    def __init__(self, pipeline: Any, sigma_data: float = 1.0, size: Mapping[str, float] | None = None) -> None:
        if (patch := pipeline.transformer.config.patch_size) != self.patch:
            raise ValueError(f"patch_size of the transformer must be {self.patch}, got {patch}")
        super().__init__(pipeline, sigma_data, size)

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
