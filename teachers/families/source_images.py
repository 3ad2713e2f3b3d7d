"""`SourceImages`: the part of families whose network also receives the latents of a source image."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from teachers.core.denoiser import Condition
from teachers.families.latent import LatentTeacher
from teachers.networks.storage import in_float32

SOURCE = "source_latents"  # the entry of the condition with what the network receives of the source image


class SourceImages(LatentTeacher):
    """A family whose condition has the latents of the source image as "source_latents", (B, C, H, W).

    `condition`, without source images, has zeros there.
    """

    source: ClassVar[tuple[str, ...]] = ("image",)
    source_entries: ClassVar[tuple[str, ...]] = (SOURCE,)

    @abstractmethod
    def text_condition(self, prompts: Sequence[str]) -> Condition:
        """The entries of the condition that come from the prompts."""

    @abstractmethod
    def source_latents(self, sources: Tensor) -> Tensor:
        """What the network receives of source images (B, *source_shape): (B, C, H, W)."""

    def blank_channels(self) -> int:
        """C of `source_latents`."""
        return self.source_channels

    def condition(self, prompts: Sequence[str]) -> Condition:
        text = self.text_condition(prompts)
        device = next(iter(text.values())).device
        blank = torch.zeros(len(prompts), self.blank_channels(), *self.shape[1:], device=device)
        return {**text, SOURCE: blank}

    def source_condition(self, prompts: Sequence[str], sources: Tensor | None) -> Condition:
        cond = self.condition(prompts)
        return cond if sources is None else {**cond, SOURCE: self._encoded(sources)}

    def exact_source_condition(self, prompts: Sequence[str], sources: Tensor | None) -> Condition:
        cond = self.exact_condition(prompts)
        return cond if sources is None else {**cond, SOURCE: self.exact_source_latents(sources)}

    def exact_source_latents(self, sources: Tensor) -> Tensor:
        """`source_latents` in float32, as `exact_condition`."""
        with in_float32([self.stock.vae]):
            return self._encoded(sources)

    def _encoded(self, sources: Tensor) -> Tensor:
        if tuple(sources.shape[1:]) != self.source_shape:
            expected = ", ".join(map(str, self.source_shape))
            raise ValueError(f"source images must have the shape (B, {expected}), got {tuple(sources.shape)}")
        if not bool(sources.isfinite().all()):
            raise ValueError("source images must be finite, got NaN or infinite values")
        for part in self._vae_encoder():
            part.to(self.device)
        with torch.no_grad():
            return self.source_latents(sources.to(self.device))
