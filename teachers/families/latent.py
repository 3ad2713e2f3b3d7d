"""LatentTeacher: what families with an autoencoder share, so that a family's own file is little but its condition."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderDC, DiffusionPipeline
from diffusers.loaders.lora_base import LoraBaseMixin
from torch import Tensor, nn

from teachers.core.denoiser import Condition, Denoiser, plain_call
from teachers.core.few_step import (
    add_guidance_embedding,
    bake_timesteps,
    consistency_scheduler,
    default_grid,
    flow_scheduler,
    grid,
    guidance_embedding,
    guidance_width,
    ignore_guidance,
    native_levels,
)
from teachers.core.lora import lora_weights
from teachers.core.schedule import schedule
from teachers.core.teacher import Teacher
from teachers.core.trigflow import Flow
from teachers.loading.source import REST, TEXT, load_pipeline
from teachers.networks.adapters import Adapted
from teachers.networks.storage import without_autocast


class LatentTeacher(Teacher):
    """A frozen latent pipeline. A subclass names its `pipelines` and says what `condition` feeds the network.

    `network`: the component that denoises; `call` says how it takes its arguments. `whole_grid`: see `flow_scheduler`.
    """

    network: ClassVar[str] = "transformer"
    whole_grid: ClassVar[bool] = False
    ignores_guidance: ClassVar[bool] = False

    def __init__(self, pipeline: Any, sigma_data: float = 1.0) -> None:
        self.stock = freeze(pipeline)
        self.device = pipeline.device
        self._words: Any = None
        vae = pipeline.vae
        if vae.config.get("force_upcast") and vae.dtype == torch.float16:
            vae.float()  # such autoencoders overflow in half precision
        deep = isinstance(vae, AutoencoderDC)
        self.factor = 2 ** (len(vae.config.encoder_block_out_channels if deep else vae.config.block_out_channels) - 1)
        self.shape = self.latent_shape()
        self.image_size = (self.shape[1] * self.factor, self.shape[2] * self.factor)
        # The shifts that depend on a picture's size belong to transformers with patches of 2 x 2.
        path, prediction = schedule(pipeline.scheduler, sigma_data, tokens=self.shape[1] * self.shape[2] // 4)
        self.denoiser = Denoiser(pipeline.components[self.network], path, prediction, call=self.call).eval()

    @staticmethod
    def call(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """network(sample (B, *shape), timestep (B,), cond) -> (B, C or more, H, W), all of them native."""
        return plain_call(network, sample, timestep, cond)

    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent at the size that the pipeline draws by default."""
        config = self.stock.components[self.network].config
        return config.in_channels, config.sample_size, config.sample_size

    def encoders(self) -> Any:
        """The stock pipeline as far as `condition` needs it: its text encoders and tokenizers.

        `load` leaves them where they are: they come into memory when they are first asked for.
        """
        if self.origin is not None and self._words is None:
            self._words = self._load_words().to(self.device)
        return self._words or self.stock

    def _load_words(self) -> Any:
        assert self.origin is not None
        path, dtype = self.origin
        return freeze(load_pipeline(self.pipelines, path, REST, dtype=dtype, **self.options))

    def unload_encoders(self) -> None:
        self._words = None
        for part in self._encoder():
            part.cpu()

    def _encoder(self) -> list[nn.Module]:
        """The half of the autoencoder that training does without."""
        parts = dict(self.stock.vae.named_children())
        return [parts[name] for name in ("encoder", "quant_conv") if parts.get(name) is not None]

    def encode(self, images: Tensor) -> Tensor:
        vae = self.stock.vae
        for part in self._encoder():
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

    def _affine(self) -> tuple[Tensor, Tensor]:
        """What the autoencoder takes is scale * (native latents) + offset; (1, C or 1, 1, 1) each."""
        vae = self.stock.vae
        config = vae.config
        scale, offset = 1 / config.scaling_factor, config.get("shift_factor") or 0.0
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean and std:
            scale, offset = [scale * s for s in std], mean
        first, second = (torch.tensor(value, device=self.device).reshape(1, -1, 1, 1) for value in (scale, offset))
        return first, second

    def pipeline(self, student: Denoiser, times: Sequence[float]) -> DiffusionPipeline:
        scheduler, told = self.scheduler(student, times)
        return type(self.stock)(**self.parts(student, bake_timesteps(student, times, told), scheduler))

    def scheduler(self, student: Denoiser, times: Sequence[float]) -> tuple[Any, Tensor]:
        """The scheduler that runs `student` through `times`, and the timesteps (N,) that it tells the network."""
        if isinstance(student.path, Flow):
            return flow_scheduler(student, times, self.whole_grid)
        return consistency_scheduler(student, times), torch.tensor(grid(student.path, len(times)))

    def save_lora(self, student: Denoiser, times: Sequence[float], folder: Path) -> bool:
        if not isinstance(self.stock, LoraBaseMixin):
            return False
        weights = lora_weights(student, times, self.scheduler(student, times)[1])
        type(self.stock).save_lora_weights(folder, **{f"{self.network}_lora_layers": weights})
        return True

    def parts(self, student: Denoiser, network: nn.Module, scheduler: Any) -> dict[str, Any]:
        """What the stock pipeline of `student` is built from: its `network` and scheduler, the rest shared."""
        # What is away comes back for the export, but not to the device, which training has filled.
        words = self.encoders() if self._words or self.origin is None else self._load_words()
        text = {key: part for key, part in words.components.items() if key.startswith(TEXT)}
        return self.stock.components | text | {self.network: network, "scheduler": scheduler}

    def size_call(self) -> dict[str, Any]:
        """The call arguments without which the pipeline would draw another size."""
        return {}

    def calls(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        call = {"num_inference_steps": num_steps, "guidance_scale": 1.0} | self.size_call()
        if times and isinstance(self.denoiser.path, Flow) and not default_grid(self.denoiser, times):
            call["sigmas"] = native_levels(self.denoiser.path, times)
        return call

    def usual_call(self, num_steps: int, guidance: float) -> dict[str, Any]:
        return super().usual_call(num_steps, guidance) | self.size_call()


def freeze(pipeline: Any) -> Any:
    for module in pipeline.components.values():
        if isinstance(module, nn.Module):
            module.requires_grad_(False).eval()
    return pipeline


class LatentUNet(LatentTeacher):
    """A latent UNet: the export never guides twice, and a student can be told its guidance scale."""

    network: ClassVar[str] = "unet"
    ignores_guidance: ClassVar[bool] = True

    def embed_guidance(self, student: Denoiser, guidance: float) -> None:
        if isinstance(student.network, Adapted):
            raise ValueError(
                "a UNet that is told its guidance scale has a layer more than its teacher, which adapters cannot add; "
                "leave method.guidances empty, or set memory.tier=full"
            )
        add_guidance_embedding(student.network)
        student.defaults = self.guidance_condition(student, torch.tensor([guidance]))

    def guidance_condition(self, student: Denoiser, guidance: Tensor) -> Condition:
        return {"timestep_cond": guidance_embedding(guidance, guidance_width(student.network))}

    def parts(self, student: Denoiser, network: nn.Module, scheduler: Any) -> dict[str, Any]:
        if not student.defaults:
            ignore_guidance(network)
        return super().parts(student, network, scheduler)
