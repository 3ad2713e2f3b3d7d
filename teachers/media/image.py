"""`Image`: RGB images."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from teachers.media.medium import Medium, Playable, Reading
from teachers.media.pictures import TRANSPARENT, fit, tile, to_pil
from teachers.support.files import atomic_write
from teachers.support.images import read_for_training
from teachers.support.listing import ENDINGS, is_image


@dataclass(frozen=True)
class Image(Medium):
    """RGB images.

    Attributes:
        height: Height in pixels.
        width: Width in pixels.
    """

    name = "image"
    noun = "image"
    plural = "images"
    output = "images"
    tag = "text-to-image"
    endings = tuple(dict.fromkeys(ending.lower() for ending in ENDINGS))
    save_endings = (".png", ".jpg", ".jpeg", ".webp")

    height: int
    width: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, height, width)."""
        return (3, self.height, self.width)

    @property
    def size(self) -> str:
        """The size in words."""
        return f"{self.width} x {self.height} pixels"

    def received(self, output: Any) -> Tensor:
        """The images (B, 3, H, W) in [0, 1] of a pipeline's output, whatever their size.

        Args:
            output: PIL images, an array (B, H, W, C) or (B, H, W), a tensor (B, C, H, W) or (B, H, W), an object with
                `images` or `image`, or a tuple that begins with them. Integers are in 0..255.

        Raises:
            ValueError: If the output contains no images.
        """
        images = getattr(output, "images", getattr(output, "image", output))
        if isinstance(images, tuple):
            images = images[0]
        if isinstance(images, list) and images and isinstance(images[0], PIL.Image.Image):
            images = np.stack([np.asarray(image.convert("RGB")) for image in images])
        elif isinstance(images, list) and images:
            images = torch.stack(images) if isinstance(images[0], Tensor) else np.stack(images)
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(images[..., None] if images.ndim == 3 else images).permute(0, 3, 1, 2)
        elif isinstance(images, Tensor) and images.ndim == 3:
            images = images[:, None]
        if isinstance(images, Tensor) and images is not output and images.ndim == 4 and images.shape[1] == 4:
            images = images[:, :3]  # of a pipeline with an alpha channel
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
            shape = f" of shape {tuple(images.shape)}" if isinstance(images, Tensor) else ""
            kind = type(images).__name__
            raise ValueError(f"a pipeline must return images as (B, 3, H, W), (B, H, W, 3) or PIL, got {kind}{shape}")
        images = images.float() if images.is_floating_point() else images.float() / 255
        images = images.clamp(0, 1)
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images

    def read(self, source: Path | bytes, name: str | None = None) -> Reading:
        """Read an image as a viewer shows it, and crop it to the medium's aspect ratio; see `read_for_training`."""
        label = name if name is not None else str(source) if isinstance(source, Path) else "an image"
        decoded = read_for_training(source, label, max(self.height, self.width))
        return Reading(self.fitted(decoded.image), (TRANSPARENT,) if decoded.transparent else ())

    def fitted(self, image: PIL.Image.Image) -> Tensor:
        """An image of any size at the medium's size, (3, height, width) in [-1, 1]; see `pictures.fit`."""
        from torchvision.transforms.v2 import functional as V  # torchvision is slow to import

        return fit(V.pil_to_tensor(image), self.height, self.width).float() / 127.5 - 1

    @classmethod
    def lists(cls, file: Path) -> bool:
        """Whether clean-fid reads a file with this name from a folder."""
        return is_image(file)

    @classmethod
    def check(cls, file: Path) -> None:
        """Decode the file at a small size; see `Medium.check`."""
        read_for_training(file, str(file), side=1)

    def judged(self, decoded: Tensor) -> Tensor:
        """Images in [0, 1]."""
        return (decoded / 2 + 0.5).clamp(0, 1)

    def still(self, sample: Tensor) -> Tensor:
        """The image itself."""
        return sample

    def playable(self, samples: Tensor) -> list[Playable]:
        """One PNG file for each image."""
        return [self._png(sample) for sample in samples]

    def _png(self, sample: Tensor) -> Playable:
        stream, image = io.BytesIO(), to_pil(sample)
        image.save(stream, format="PNG")
        return Playable("image/png", stream.getvalue(), image.width, image.height)

    def save(self, samples: Tensor, file: Path, columns: int | None = None) -> list[Path]:
        """Write the images as one grid to a .png, .jpg or .webp file."""
        ending = self.check_ending(file)
        with atomic_write(file, concurrent=True) as temporary:
            to_pil(tile(samples, columns)).save(temporary, format=PIL.Image.registered_extensions()[ending])
        return [file]
