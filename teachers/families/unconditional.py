"""Unconditional pixel-space models: `DDPMPipeline` and `DDIMPipeline` with a `UNet2DModel`."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from diffusers import DDIMPipeline, DDPMPipeline, DiffusionPipeline, UNet2DModel
from torch import Tensor

from teachers.core.denoiser import Condition, Denoiser
from teachers.core.few_step import drop_variance
from teachers.core.schedule import data_scale, schedule
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
        self.check_classes(unet)
        kind = unet.config.get("time_embedding_type", "positional")  # networks of other classes have no such entry
        if kind != "positional":
            raise ValueError(
                f"time_embedding_type of the UNet2DModel must be positional, got {kind}: "
                f"{TIME_EMBEDDINGS.get(kind, 'unknown')}"
            )
        self.unet = unet
        edm = self.takes_edm
        path, prediction = schedule(scheduler, sigma_data, flow=False, variance_preserving=not edm, edm=edm)
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

    @staticmethod
    def check_classes(unet: UNet2DModel) -> None:
        """Raise ValueError if the network has classes."""
        if unet.config.class_embed_type or unet.config.num_class_embeds:
            raise ValueError(
                "the family `unconditional` takes a UNet2DModel without classes, got a class-conditional one"
            )

    @classmethod
    def wrap(cls, pipeline: Any, sigma_data: float | None = None, size: Mapping[str, float] | None = None) -> Self:
        cls.size_argument(size)
        if not isinstance(pipeline.unet, UNet2DModel):
            raise ValueError(
                f"the unet of a {type(pipeline).__name__} must be a UNet2DModel, got a {type(pipeline.unet).__name__}"
            )
        return cls(pipeline.unet, pipeline.scheduler, data_scale(pipeline.scheduler, sigma_data, cls.sigma_data))

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
        self.check_exportable(times)
        scheduler, timesteps = self.consistency_export(student, times)
        network = self.exported_network(student, times, timesteps)
        drop_variance(network, self.shape[0])
        pipeline: DiffusionPipeline = self.exported_class()(unet=network, scheduler=scheduler)
        return pipeline

    def exported_class(self) -> type[Any]:
        return DDPMPipeline

    def teacher_scheduler(self) -> Any:
        return self.scheduler

    def calls(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        return {"num_inference_steps": num_steps}
