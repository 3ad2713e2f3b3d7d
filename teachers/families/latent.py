"""`LatentTeacher`: the common code of families with an autoencoder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from teachers.core.denoiser import Call, Condition, Denoiser, Prediction, default_call
from teachers.core.few_step import flow_scheduler, is_default_schedule, native_levels
from teachers.core.lora import lora_weights
from teachers.core.noise_path import NoisePath
from teachers.core.schedule import schedule
from teachers.core.trigflow import Flow
from teachers.families.autoencoding import Autoencoding
from teachers.families.native_exports import NativeExports
from teachers.families.sample_size import height_and_width
from teachers.loading.lora_checks import takes_lora
from teachers.loading.source import AUTOENCODERS, OTHER_COMPONENTS, TEXT_COMPONENTS, load_pipeline
from teachers.networks.storage import in_float32


class LatentTeacher(Autoencoding, NativeExports):
    """A frozen latent diffusion pipeline. A subclass sets `pipelines` and implements `condition`.

    Args:
        pipeline: A pipeline of one of the classes in `pipelines`; its networks are frozen.
        sigma_data: Standard deviation of the native latents.

    Attributes:
        passes_sigmas: Whether the pipeline passes evenly spaced sigmas to its scheduler; see `flow_scheduler`.
        takes_flow: Whether the pipeline can sample a rectified flow: those that call `scale_model_input` cannot.
        takes_variance_preserving: Whether the pipeline can sample a variance-preserving schedule.
        takes_cosine: Whether the pipeline can sample TrigFlow's own schedule (`Cosine`).
        constructor_reads: Other components than text encoders whose config the pipeline's constructor needs.
        stock: The pipeline.
        device: Where the networks are.
        factor: Pixels or audio samples for each latent pixel, along one side.

    Raises:
        ValueError: If the pipeline's scheduler has no known noise schedule, or its autoencoder another class.
    """

    passes_sigmas: ClassVar[bool] = False
    takes_flow: ClassVar[bool] = True
    takes_variance_preserving: ClassVar[bool] = True
    takes_cosine: ClassVar[bool] = False
    constructor_reads: ClassVar[tuple[str, ...]] = ()
    ignores_guidance: ClassVar[bool] = False
    encoder_components: ClassVar[Mapping[str, tuple[str, ...]]] = {"condition": TEXT_COMPONENTS, "encode": AUTOENCODERS}

    def __init__(self, pipeline: Any, sigma_data: float = 1.0) -> None:
        self.stock = freeze(pipeline)
        self.device = pipeline.device
        self._text_pipeline: Any = None
        self.check_autoencoder()
        vae = self.stock_autoencoder
        if vae.config.get("force_upcast") and vae.dtype == torch.float16:
            vae.float()  # such autoencoders overflow in half precision
        self.factor = self.compression()
        self.shape = self.latent_shape()
        self._check_channels()
        self.check_statistics()
        self.set_size()
        path, prediction = self.noise_path(sigma_data)
        self.denoiser = Denoiser(self.denoising_network(), path, prediction, call=self.network_call()).eval()

    @staticmethod
    def call(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network.

        Args:
            network: The network.
            sample: Native noisy latents, (B, *shape).
            timestep: Native timesteps, (B,).
            cond: The condition.

        Returns:
            The network's output, (B, C or more, ...).
        """
        return default_call(network, sample, timestep, cond)

    def denoising_network(self) -> nn.Module:
        """The network of the denoiser."""
        network: nn.Module = self.stock.components[self.network]
        return network

    def network_call(self) -> Call:
        """`call`, or a partial application of it to settings of the pipeline; copies of the denoiser share it."""
        return self.call

    def network_config(self) -> Any:
        """The configuration of the network."""
        return self.stock.components[self.network].config

    def noise_path(self, sigma_data: float) -> tuple[NoisePath, Prediction]:
        """The noise schedule of the pipeline, and what the network predicts.

        Args:
            sigma_data: Standard deviation of the native latents.
        """
        kinds = self.takes_flow, self.takes_variance_preserving, self.takes_cosine, self.takes_edm
        return schedule(self.stock.scheduler, sigma_data, self.tokens(), *kinds)

    def latent_shape(self) -> tuple[int, ...]:
        """The shape of a latent: (C, H, W) at the pipeline's default image size, or (C, ...) for other media."""
        config = self.network_config()
        return config.in_channels - self.source_channels, *height_and_width(config.sample_size)

    def set_size(self) -> None:
        """Set `image_size`; families of other media have a size in `medium`."""
        self.image_size = (self.shape[1] * self.factor, self.shape[2] * self.factor)

    def tokens(self) -> int:
        """The number of tokens by which a scheduler shifts its timesteps: those of 2 x 2 patches of an image."""
        return self.shape[1] * self.shape[2] // 4

    def _check_channels(self) -> None:
        """Raise ValueError if the network's channels are not those of the autoencoder's latents."""
        config, channels = self.network_config(), self.latent_channels()
        inputs = config.in_channels - self.source_channels
        if self.shape[0] != channels:
            packed = inputs // self.shape[0] if self.shape[0] > 0 else 1
            others = (
                f" and {self.source_channels} of a {type(self.stock).__name__}'s source image, got {config.in_channels}"
                if self.source_channels
                else f", got {config.in_channels}; a {type(self.stock).__name__} passes no mask or source image to it"
            )
            raise ValueError(
                f"in_channels of the {self.network} must be {channels * packed + self.source_channels} for the "
                f"{channels} latent channels of the {self.autoencoder}{others}"
            )
        outputs = config.get("out_channels") or inputs
        if outputs not in (inputs, 2 * inputs):
            raise ValueError(
                f"out_channels of the {self.network} must be {inputs}, or twice as many with a learned variance, got "
                f"{outputs}"
            )

    def text_pipeline(self) -> Any:
        """A pipeline with the text encoders and tokenizers that `condition` needs; the first call loads them."""
        if self.origin is not None and self._text_pipeline is None:
            self._text_pipeline = self._load_text_pipeline().to(self.device)
        return self._text_pipeline or self.stock

    def prompt_limit(self) -> tuple[Any, int] | None:
        """That of pipelines whose text encoders are all CLIP's."""
        parts = self.text_pipeline().components.items()
        tokenizers = [part for name, part in parts if name.startswith("tokenizer") and part is not None]
        if not tokenizers or not all(isinstance(part, CLIPTokenizer) for part in tokenizers):
            return None
        shortest = min(tokenizers, key=lambda tokenizer: tokenizer.model_max_length)
        return shortest, int(shortest.model_max_length)

    @property
    def text_encoders_loaded(self) -> bool:
        """Whether the text encoders are in memory."""
        return self.origin is None or self._text_pipeline is not None

    def _load_text_pipeline(self) -> Any:
        assert self.origin is not None
        path, dtype = self.origin
        owners, read = (type(self), *self.components), self.constructor_reads
        with torch.device("meta"):
            empty = {
                name: type(self.stock.components[name]).from_config(self.stock.components[name].config) for name in read
            }
        skip = tuple(name for name in OTHER_COMPONENTS if name not in read)
        pipeline = load_pipeline(self.pipelines, path, skip, owners, dtype=dtype, **empty, **self.options)
        for name in read:
            setattr(pipeline, name, None)
        return freeze(pipeline)

    def unload_encoders(self) -> None:
        self._text_pipeline = None
        for part in self._vae_encoder():
            part.cpu()

    def exact_condition(self, prompts: Sequence[str]) -> Condition:
        loaded, device = self.text_encoders_loaded, self.device
        if not loaded:  # on the CPU, because training fills the device
            self._text_pipeline, self.device = self._load_text_pipeline(), torch.device("cpu")
        try:
            parts, used = self.text_pipeline().components, self.encoder_components["condition"]
            with in_float32(part for name, part in parts.items() if name.startswith(used)):
                return {key: value.to(device) for key, value in self.condition(prompts).items()}
        finally:
            self.device = device
            if not loaded:
                self._text_pipeline = None

    def pipeline(self, student: Denoiser, times: Sequence[float]) -> DiffusionPipeline:
        self.check_exportable(times)
        scheduler, timesteps = self.scheduler(student, times)
        network = self.exported_network(student, times, timesteps)
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
        return self.consistency_export(student, times)

    def exported_class(self) -> type[Any]:
        return type(self.stock)

    def teacher_scheduler(self) -> Any:
        return self.stock.scheduler

    def save_lora(self, student: Denoiser, times: Sequence[float], folder: Path) -> bool:
        if not takes_lora(self.stock, self.network):
            return False
        points = self.exact_points(student, times, self.scheduler(student, times)[1])
        weights = lora_weights(student, *points)
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
        """The call arguments that make the pipeline use the teacher's size, empty if it is the default."""
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
