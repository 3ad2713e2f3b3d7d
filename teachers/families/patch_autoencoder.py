"""`PatchAutoencoder`: latents whose pixels are normalised patches of an autoencoder's latents, that of Flux.2."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from teachers.families.sized_image import SizedImage


class PatchAutoencoder(SizedImage):
    """A family whose latent pixels are patches of 2 x 2 pixels of the autoencoder's latents.

    Patches are normalised by the statistics of a batch normalisation, which are buffers of the autoencoder.
    """

    statistics: ClassVar[tuple[str, ...]] = ()
    patch: ClassVar[int] = 1

    def compression(self) -> int:
        return 2 * super().compression()

    def latent_channels(self) -> int:
        return 4 * super().latent_channels()

    def batch_norm_eps(self) -> float:
        """What is added to the variance of a channel."""
        return float(self.stock.vae.config.batch_norm_eps)

    def _affine(self) -> tuple[Tensor, Tensor]:
        norm, lead = self.stock.vae.bn, (1, -1, 1, 1)
        scale = (norm.running_var.float() + self.batch_norm_eps()).sqrt()
        return scale.to(self.device).reshape(lead), norm.running_mean.float().to(self.device).reshape(lead)

    def _mean(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(super()._mean(images), 2)

    def _image(self, native: Tensor) -> Tensor:
        return super()._image(F.pixel_shuffle(native, 2))
