"""`LatentTeacher` and `LatentUNet`: the common code of families with an autoencoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderDC, DiffusionPipeline
from diffusers.loaders.lora_base import LoraBaseMixin
from torch import Tensor, nn

from teachers.core.denoiser import Condition, Denoiser, default_call
from teachers.core.few_step import (
    consistency_scheduler,
    flow_scheduler,
    is_default_schedule,
    lcm_timesteps,
    native_levels,
)
from teachers.core.lora import lora_weights
from teachers.core.schedule import schedule
from teachers.core.teacher import Teacher
from teachers.core.time_embedding import (
    add_guidance_embedding,
    bake_timesteps,
    guidance_embedding,
    guidance_width,
    ignore_guidance,
)
from teachers.core.trigflow import Flow
from teachers.loading.source import OTHER_COMPONENTS, TEXT_COMPONENTS, load_pipeline
from teachers.networks.adapters import Adapted
from teachers.networks.storage import in_float32, without_autocast


class LatentTeacher(Teacher):
    """A frozen latent diffusion pipeline. A subclass sets `pipelines` and implements `condition`.

    Args:
        pipeline: A pipeline of one of the classes in `pipelines`; its networks are frozen.
        sigma_data: Standard deviation of the native latents.

    Attributes:
        network: Name of the component that denoises.
        passes_sigmas: Whether the pipeline passes evenly spaced sigmas to its scheduler; see `flow_scheduler`.
        stock: The pipeline.
        device: Where the networks are.
        factor: Pixels of an image for each latent pixel, along one side.

    Raises:
        ValueError: If the pipeline's scheduler has no known noise schedule.
    """

    network: ClassVar[str] = "transformer"
    passes_sigmas: ClassVar[bool] = False
    ignores_guidance: ClassVar[bool] = False

    def __init__(self, pipeline: Any, sigma_data: float = 1.0) -> None:
        self.stock = freeze(pipeline)
        self.device = pipeline.device
        self._text_pipeline: Any = None
        vae = pipeline.vae
        if vae.config.get("force_upcast") and vae.dtype == torch.float16:
            vae.float()  # such autoencoders overflow in half precision
        blocks = "encoder_block_out_channels" if isinstance(vae, AutoencoderDC) else "block_out_channels"
        self.factor = 2 ** (len(vae.config[blocks]) - 1)
        self.shape = self.latent_shape()
        self.image_size = (self.shape[1] * self.factor, self.shape[2] * self.factor)
        # Transformers whose shift depends on the image size have patches of 2 x 2.
        path, prediction = schedule(pipeline.scheduler, sigma_data, tokens=self.shape[1] * self.shape[2] // 4)
        self.denoiser = Denoiser(pipeline.components[self.network], path, prediction, call=self.call).eval()

    @staticmethod
    def call(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network.

        Args:
            network: The network.
            sample: Native noisy latents, (B, *shape).
            timestep: Native timesteps, (B,).
            cond: The condition.

        Returns:
            The network's output, (B, C or more, H, W).
        """
        return default_call(network, sample, timestep, cond)

    def latent_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of a latent at the pipeline's default image size."""
        config = self.stock.components[self.network].config
        return config.in_channels, config.sample_size, config.sample_size

    def text_pipeline(self) -> Any:
        """A pipeline with the text encoders and tokenizers that `condition` needs; the first call loads them."""
        if self.origin is not None and self._text_pipeline is None:
            self._text_pipeline = self._load_text_pipeline().to(self.device)
        return self._text_pipeline or self.stock

    @property
    def text_encoders_loaded(self) -> bool:
        """Whether the text encoders are in memory."""
        return self.origin is None or self._text_pipeline is not None

    def _load_text_pipeline(self) -> Any:
        assert self.origin is not None
        path, dtype = self.origin
        return freeze(load_pipeline(self.pipelines, path, OTHER_COMPONENTS, dtype=dtype, **self.options))

    def unload_encoders(self) -> None:
        self._text_pipeline = None
        for part in self._vae_encoder():
            part.cpu()

    def _vae_encoder(self) -> list[nn.Module]:
        """The modules of the autoencoder that only `encode` uses."""
        parts = dict(self.stock.vae.named_children())
        return [parts[name] for name in ("encoder", "quant_conv") if parts.get(name) is not None]

    def encode(self, images: Tensor) -> Tensor:
        vae = self.stock.vae
        for part in self._vae_encoder():
            part.to(self.device)
        code = vae.encode(images.to(self.device, vae.dtype))
        mean = code.latent if isinstance(vae, AutoencoderDC) else code.latent_dist.mean
        scale, offset = self._affine()
        return (mean.float() - offset) / scale / self.denoiser.path.sigma_data

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.stock.vae
        scale, offset = self._affine()
        native = latents * self.denoiser.path.sigma_data * scale + offset
        with without_autocast(self.device):  # some autoencoders overflow in half precision
            return vae.decode(native.to(self.device, vae.dtype), return_dict=False)[0].float()

    def exact_condition(self, prompts: Sequence[str]) -> Condition:
        loaded, device = self.text_encoders_loaded, self.device
        if not loaded:  # on the CPU, because training fills the device
            self._text_pipeline, self.device = self._load_text_pipeline(), torch.device("cpu")
        try:
            parts = self.text_pipeline().components
            with in_float32(part for name, part in parts.items() if name.startswith(TEXT_COMPONENTS)):
                return {key: value.to(device) for key, value in self.condition(prompts).items()}
        finally:
            self.device = device
            if not loaded:
                self._text_pipeline = None

    def exact_decode(self, latents: Tensor) -> Tensor:
        with in_float32([self.stock.vae]):
            return self.decode(latents.to(self.device))

    def _affine(self) -> tuple[Tensor, Tensor]:
        """(scale, offset), (1, C or 1, 1, 1) each: the autoencoder's latents are scale * native latents + offset."""
        vae = self.stock.vae
        config = vae.config
        scale, offset = 1 / config.scaling_factor, config.get("shift_factor") or 0.0
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean and std:
            scale, offset = [scale * s for s in std], mean
        first, second = (torch.tensor(value, device=self.device).reshape(1, -1, 1, 1) for value in (scale, offset))
        return first, second

    def pipeline(self, student: Denoiser, times: Sequence[float]) -> DiffusionPipeline:
        scheduler, timesteps = self.scheduler(student, times)
        network = bake_timesteps(student, times, timesteps)
        pipeline: DiffusionPipeline = type(self.stock)(**self.parts(student, network, scheduler))
        return pipeline

    def scheduler(self, student: Denoiser, times: Sequence[float]) -> tuple[Any, Tensor]:
        """The scheduler of an exported pipeline.

        Args:
            student: The student.
            times: Decreasing angles in radians, N of them.

        Returns:
            The scheduler, and the timesteps (N,) that the network receives from the pipeline.
        """
        if isinstance(student.path, Flow):
            return flow_scheduler(student, times, self.passes_sigmas)
        return consistency_scheduler(student, times), torch.tensor(lcm_timesteps(student.path, len(times)))

    def save_lora(self, student: Denoiser, times: Sequence[float], folder: Path) -> bool:
        if not isinstance(self.stock, LoraBaseMixin):
            return False
        weights = lora_weights(student, times, self.scheduler(student, times)[1])
        type(self.stock).save_lora_weights(folder, **{f"{self.network}_lora_layers": weights})
        return True

    def parts(self, student: Denoiser, network: nn.Module, scheduler: Any) -> dict[str, Any]:
        """The constructor arguments of the exported pipeline.

        Args:
            student: The student.
            network: The network to export.
            scheduler: The scheduler to export.

        Returns:
            `network`, `scheduler` and the teacher's other components, by name.
        """
        # Unloaded text encoders are loaded for the export on the CPU, because training fills the device.
        source = self.text_pipeline() if self.text_encoders_loaded else self._load_text_pipeline()
        text = {key: part for key, part in source.components.items() if key.startswith(TEXT_COMPONENTS)}
        return self.stock.components | text | {self.network: network, "scheduler": scheduler}

    def size_call(self) -> dict[str, Any]:
        """The call arguments that make the pipeline use the teacher's image size, empty if it is the default."""
        return {}

    def calls(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        call = {"num_inference_steps": num_steps, "guidance_scale": 1.0} | self.size_call()
        if times and isinstance(self.denoiser.path, Flow) and not is_default_schedule(self.denoiser, times):
            call["sigmas"] = native_levels(self.denoiser.path, times)
        return call

    def usual_call(self, num_steps: int, guidance: float) -> dict[str, Any]:
        return super().usual_call(num_steps, guidance) | self.size_call()


def freeze(pipeline: Any) -> Any:
    """Freeze a pipeline's networks in place and put them into eval mode; returns the pipeline."""
    for module in pipeline.components.values():
        if isinstance(module, nn.Module):
            module.requires_grad_(False).eval()
    return pipeline


class LatentUNet(LatentTeacher):
    """A pipeline with a latent UNet. Exports ignore `guidance_scale`, unless the student has an embedding for it."""

    network: ClassVar[str] = "unet"
    ignores_guidance: ClassVar[bool] = True

    def embed_guidance(self, student: Denoiser, guidance: float) -> None:
        if isinstance(student.network, Adapted):
            raise ValueError(
                "method.guidances must be empty with memory.tier=lora: adapters cannot add the layer that embeds the "
                "guidance scale of a UNet"
            )
        add_guidance_embedding(student.network)
        student.defaults = self.guidance_condition(student, torch.tensor([guidance]))

    def guidance_condition(self, student: Denoiser, guidance: Tensor) -> Condition:
        return {"timestep_cond": guidance_embedding(guidance, guidance_width(student.network))}

    def parts(self, student: Denoiser, network: nn.Module, scheduler: Any) -> dict[str, Any]:
        if not student.defaults:
            ignore_guidance(network)
        return super().parts(student, network, scheduler)
