"""`Autoencoding`: encoding and decoding with the autoencoder of a stock pipeline."""

import logging
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from teachers.core.teacher import Teacher
from teachers.networks.storage import in_float32, without_autocast

logger = logging.getLogger(__name__)

LISTS = ("latents_mean", "latents_std")  # entries of an autoencoder's config with one number for each channel
DIVISORS = ("scaling_factor", "latents_std")  # latents are divided by them, or their encodings are


class Autoencoding(Teacher):
    """The part of `LatentTeacher` that encodes and decodes.

    Attributes:
        autoencoder: Name of the pipeline's component that encodes and decodes.
        decode_options: Further arguments with which the pipeline calls the autoencoder's `decode`.
        statistics: Entries of the autoencoder's config by which the pipeline scales latents. It reads no other
            entries, so that they have no effect here either.
        optional_statistics: Further ones, which may be missing.
        stock: The pipeline.
        device: Where the networks are.
    """

    autoencoder: ClassVar[str] = "vae"
    decode_options: ClassVar[Mapping[str, Any]] = {}
    statistics: ClassVar[tuple[str, ...]] = ("scaling_factor",)
    optional_statistics: ClassVar[tuple[str, ...]] = ()
    stock: Any
    device: torch.device
    _said_overflow = False

    @property
    def stock_autoencoder(self) -> Any:
        """The pipeline's autoencoder."""
        return self.stock.components[self.autoencoder]

    def check_autoencoder(self) -> None:
        """Check that the autoencoder has the class that the pipeline declares; an AutoencoderTiny replaces a large one.

        Raises:
            ValueError: If it has another class: its encoding or decoding may be random, or need other arguments.
        """
        kind = type(self.stock)
        try:
            declared = typing.get_type_hints(kind.__init__).get(self.autoencoder)
        except NameError:  # of a pipeline of another package, whose annotations cannot be resolved
            return
        allowed = typing.get_args(declared) or (declared,)
        if AutoencoderKL in allowed:
            allowed += (AutoencoderTiny,)
        if not all(isinstance(each, type) for each in allowed) or isinstance(self.stock_autoencoder, allowed):
            return
        names, found = " or ".join(each.__name__ for each in allowed), type(self.stock_autoencoder).__name__
        raise ValueError(f"the {self.autoencoder} of a {kind.__name__} must be an {names}, got {found}")

    def compression(self) -> int:
        """Pixels of an image for each latent pixel, along one side."""
        vae = self.stock_autoencoder
        blocks = "encoder_block_out_channels" if isinstance(vae, AutoencoderDC) else "block_out_channels"
        return int(2 ** (len(vae.config[blocks]) - 1))

    def latent_channels(self) -> int:
        """The number of channels of the autoencoder's latents."""
        return int(self.stock_autoencoder.config.latent_channels)

    def _vae_encoder(self) -> list[nn.Module]:
        """The modules of the autoencoder that only `encode` uses."""
        parts = dict(self.stock_autoencoder.named_children())
        return [parts[name] for name in ("encoder", "quant_conv") if parts.get(name) is not None]

    def encode(self, images: Tensor) -> Tensor:
        for part in self._vae_encoder():
            part.to(self.device)
        scale, offset = self._affine()
        return (self._without_overflow(self._mean, images) - offset) / scale / self.denoiser.path.sigma_data

    def _mean(self, images: Tensor) -> Tensor:
        vae = self.stock_autoencoder
        code = vae.encode(images.to(self.device, vae.dtype))
        mean: Tensor = code.latent_dist.mean if hasattr(code, "latent_dist") else code[0]
        return mean.float()

    def decode(self, latents: Tensor) -> Tensor:
        scale, offset = self._affine()
        native = latents * self.denoiser.path.sigma_data * scale + offset
        with without_autocast(self.device):  # some autoencoders overflow in half precision
            return self._without_overflow(self._image, native)

    def _image(self, native: Tensor) -> Tensor:
        vae = self.stock_autoencoder
        image: Tensor = vae.decode(native.to(self.device, vae.dtype), **self.decode_options, return_dict=False)[0]
        return image.float()

    def _without_overflow(self, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """function(inputs) of the autoencoder; rows that overflow in half precision are computed again in float32.

        Only these rows are, so that the result for an image does not depend on the images that came before it.
        """
        outputs, vae = function(inputs), self.stock_autoencoder
        dtype = vae.dtype
        if dtype == torch.float32:
            return outputs
        overflowed = ~outputs.isfinite().flatten(1).all(1)
        if not bool(overflowed.any()):
            return outputs
        if not self._said_overflow:
            self._said_overflow = True
            logger.warning(
                "the autoencoder overflows in %s; the images concerned are computed in float32",
                str(dtype).removeprefix("torch."),
            )
        vae.float()
        outputs[overflowed] = function(inputs[overflowed.to(inputs.device)])
        nn.Module.to(vae, dtype)  # diffusers' own `to` warns about modules that stay in float32
        return outputs

    def exact_decode(self, latents: Tensor) -> Tensor:
        used = self.encoder_components["encode"]
        with in_float32(part for name, part in self.stock.components.items() if name.startswith(used)):
            return self.decode(latents.to(self.device))

    def check_statistics(self) -> None:
        """Check the entries of the autoencoder's config that the pipeline reads.

        Raises:
            ValueError: If the pipeline cannot scale latents by them.
        """
        config, channels, part = self.stock_autoencoder.config, self.latent_channels(), self.autoencoder
        for name in self.statistics + self.optional_statistics:
            value = config.get(name)
            if value is None and name in self.optional_statistics:
                continue
            count = channels if name in LISTS else 1
            values = list(value) if isinstance(value, list | tuple) else [value]
            if len(values) != count or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
                kind = f"{count} numbers" if name in LISTS else "a number"
                raise ValueError(f"{name} of the {part} of a {type(self.stock).__name__} must be {kind}, got {value}")
            if name in DIVISORS and 0 in values:
                raise ValueError(f"{name} of the {part} must not be 0, got {value}")

    def _affine(self) -> tuple[Tensor, Tensor]:
        """(scale, offset), (1, C or 1, 1, ...) each: the autoencoder's latents are scale * native latents + offset."""
        config = self.stock_autoencoder.config
        found = {name: config.get(name) for name in self.statistics + self.optional_statistics}
        scale: Any = 1 / (found.get("scaling_factor") or 1.0)
        offset: Any = found.get("shift_factor") or 0.0
        mean, std = found.get("latents_mean"), found.get("latents_std")
        if mean and std:
            scale, offset = [scale * s for s in std], mean
        lead = (1, -1, *[1] * (len(self.shape) - 1))
        first, second = (torch.tensor(value, device=self.device).reshape(lead) for value in (scale, offset))
        return first, second
