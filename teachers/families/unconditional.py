"""Unconditional pixel-space models: `DDPMPipeline` and `DDIMPipeline` with a `UNet2DModel`."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from diffusers import DDIMPipeline, DDPMPipeline, DiffusionPipeline, UNet2DModel
from torch import Tensor

from teachers.core.denoiser import Condition, Denoiser
from teachers.core.few_step import drop_variance
from teachers.core.schedule import schedule
from teachers.families.native_exports import NativeExports
from teachers.families.sample_size import height_and_width
from teachers.loading.source import Pipelines

TIME_EMBEDDINGS = {  # what is wrong with the others
    "fourier": "it takes the logarithm of the timestep, which is 0 at the end of a schedule of timesteps",
    "learned": "it knows whole timesteps only, and students are trained at all times between",
}


class Unconditional(NativeExports):
    """`DDPMPipeline` or `DDIMPipeline`. The latents are pixels.

    Args:
        unet: The network; it is frozen.
        scheduler: The scheduler that it was trained with.
        sigma_data: Standard deviation of the pixels in [-1, 1], about 0.5 for photographs.

    Raises:
        ValueError: If the network is class-conditional, or the schedule is not variance preserving.
    """

    guided: ClassVar[bool] = False
    pipelines: ClassVar[Pipelines] = (DDPMPipeline, DDIMPipeline)
    network: ClassVar[str] = "unet"
    encoder_components: ClassVar[Mapping[str, tuple[str, ...]]] = {"condition": (), "encode": ()}  # latents are pixels

    def __init__(self, unet: UNet2DModel, scheduler: Any, sigma_data: float = 1.0) -> None:
        if unet.config.class_embed_type or unet.config.num_class_embeds:
            raise ValueError(
                "the family `unconditional` takes a UNet2DModel without classes, got a class-conditional one"
            )
        kind = unet.config.get("time_embedding_type", "positional")  # networks of other classes have no such entry
        if kind != "positional":
            raise ValueError(
                f"time_embedding_type of the UNet2DModel must be positional, got {kind}: "
                f"{TIME_EMBEDDINGS.get(kind, 'unknown')}"
            )
        self.unet = unet
        path, prediction = schedule(scheduler, sigma_data, flow=False)
        self.scheduler = scheduler
        self.denoiser = Denoiser(unet.requires_grad_(False).eval(), path, prediction).eval()
        height, width = height_and_width(unet.config.sample_size)
        self.shape = (unet.config.in_channels, height, width)
        self.image_size = (height, width)
        channels, outputs = self.shape[0], unet.config.out_channels
        if outputs not in (channels, 2 * channels):
            raise ValueError(
                f"out_channels of the UNet2DModel must be {channels}, or {2 * channels} with a learned variance, got "
                f"{outputs}"
            )

    @classmethod
    def wrap(cls, pipeline: Any, sigma_data: float | None = None, size: Mapping[str, float] | None = None) -> Self:
        cls.size_argument(size)
        if not isinstance(pipeline.unet, UNet2DModel):
            raise ValueError(
                f"the family `unconditional` takes a pipeline with a UNet2DModel, got {type(pipeline).__name__} with "
                f"{type(pipeline.unet).__name__}"
            )
        return cls(pipeline.unet, pipeline.scheduler, cls.sigma_data if sigma_data is None else sigma_data)

    def encode(self, images: Tensor) -> Tensor:
        if self.shape[0] not in (1, 3):
            raise ValueError(f"in_channels of the UNet2DModel must be 1 or 3 to train on images, got {self.shape[0]}")
        images = images.to(self.unet.device)
        images = images.mean(1, keepdim=True) if self.shape[0] == 1 else images
        return images / self.denoiser.path.sigma_data

    def decode(self, latents: Tensor) -> Tensor:
        images = latents * self.denoiser.path.sigma_data
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images

    def condition(self, prompts: Sequence[str]) -> Condition:
        return {}

    def pipeline(self, student: Denoiser, times: Sequence[float]) -> DiffusionPipeline:
        scheduler, timesteps = self.consistency_export(student, times)
        network = self.exported_network(student, times, timesteps)
        drop_variance(network, self.shape[0])
        return DDPMPipeline(unet=network, scheduler=scheduler)

    def exported_class(self) -> type[Any]:
        return DDPMPipeline

    def teacher_scheduler(self) -> Any:
        return self.scheduler

    def calls(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        return {"num_inference_steps": num_steps}
