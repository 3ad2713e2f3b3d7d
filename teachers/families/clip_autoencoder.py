"""`ClipAutoencoder`: images as single frames of an autoencoder of clips, that of Qwen-Image."""

from typing import ClassVar

from torch import Tensor

from teachers.families.sized_image import SizedImage


class ClipAutoencoder(SizedImage):
    """A family whose autoencoder takes clips, and whose latents have a mean and a deviation for each channel."""

    statistics: ClassVar[tuple[str, ...]] = ("latents_mean", "latents_std")

    def compression(self) -> int:
        return int(self.stock.vae_scale_factor)

    def latent_channels(self) -> int:
        return int(self.stock.vae.config.z_dim)

    def check_patches(self) -> None:
        """Check a transformer of patches, whose `out_channels` are those of a latent pixel.

        Raises:
            ValueError: If its channels are not those of 2 x 2 latent pixels, and of one.
        """
        config, channels = self.stock.transformer.config, self.latent_channels()
        if (config.in_channels, config.out_channels) != (4 * channels, channels):
            raise ValueError(
                f"in_channels and out_channels of the transformer must be {4 * channels} and {channels} for the "
                f"{channels} latent channels of the vae, got {config.in_channels} and {config.out_channels}"
            )

    def _mean(self, images: Tensor) -> Tensor:
        return super()._mean(images[:, :, None])[:, :, 0]

    def _image(self, native: Tensor) -> Tensor:
        return super()._image(native[:, :, None])[:, :, 0]
