"""Flux.1 Kontext: Flux.1 whose transformer receives the tokens of a source image after those of the noisy latents."""

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import FluxKontextPipeline
from torch import Tensor

from teachers.core.denoiser import Condition
from teachers.families.embedded_guidance import default_guidance
from teachers.families.flux import Flux, evaluate
from teachers.families.source_images import SOURCE, SourceImages
from teachers.loading.source import Pipelines

DEFAULT_GUIDANCE = default_guidance(FluxKontextPipeline)


def noisy_tokens(hidden: Tensor, sample: Tensor, cond: Condition) -> Tensor:
    """The tokens of noisy latents (B, C, H, W) among those of both images."""
    return hidden[:, : sample.shape[2] * sample.shape[3] // 4]


class FluxKontext(SourceImages, Flux):
    """`FluxKontextPipeline` with one source image of the size of the samples.

    Calls of exports turn off the scaling of the source image to one of the pipeline's own sizes.
    """

    pipelines: ClassVar[Pipelines] = (FluxKontextPipeline,)

    def __init__(self, pipeline: Any, sigma_data: float = 1.0) -> None:
        super().__init__(pipeline, sigma_data)
        self.denoiser.sample_tokens = noisy_tokens

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        rest = {key: value for key, value in cond.items() if key != SOURCE}
        return evaluate(network, [sample, cond[SOURCE]], timestep, rest, DEFAULT_GUIDANCE)

    def blank_channels(self) -> int:
        return self.shape[0]

    def unpack(self, native: Tensor) -> Tensor:
        _, height, width = self.shape
        return super().unpack(native[:, : height * width // 4] if native.ndim == 3 else native)

    def text_condition(self, prompts: Sequence[str]) -> Condition:
        return Flux.condition(self, prompts)

    def source_latents(self, sources: Tensor) -> Tensor:
        return self.encode(sources) * self.denoiser.path.sigma_data

    def size_call(self) -> dict[str, Any]:
        height, width = self.image_size
        return {"height": height, "width": width, "max_area": height * width, "_auto_resize": False}
