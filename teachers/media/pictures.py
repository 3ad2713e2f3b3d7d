"""Pictures and frames as tensors: cropping, grids, 8-bit values."""

import math

import torch
from PIL import Image
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in the brightness
TRANSPARENT = "have transparency, which is composited on white"  # a note of `Reading`


def fit(pixels: Tensor, height: int, width: int) -> Tensor:
    """Scale a picture until it covers height x width pixels, and crop its centre.

    Args:
        pixels: A picture (C, H, W) of bytes.
        height: Height of the result.
        width: Width of the result.

    Returns:
        The picture (C, height, width), with the aspect ratio of the original and without borders.
    """
    from torchvision.transforms.v2 import functional as V  # torchvision is slow to import

    h, w = pixels.shape[1:]
    if w * height >= h * width:
        keep = min(w, 4 * math.ceil(h * width / height) + w % 2)  # of a panorama, resize the middle only
        pixels = V.center_crop(pixels, [h, keep])
        size = [height, max(width, int(height * keep / h))]
    else:
        keep = min(h, 4 * math.ceil(w * height / width) + h % 2)
        pixels = V.center_crop(pixels, [keep, w])
        size = [max(height, int(width * keep / w)), width]
    return V.center_crop(V.resize(pixels, size), [height, width])


def to_bytes(pictures: Tensor) -> Tensor:
    """Values in [0, 1] as bytes on the CPU, rounded; NaN becomes 0."""
    return (pictures.detach().float().nan_to_num().clamp(0, 1) * 255).round().byte().cpu()


def tile(pictures: Tensor, columns: int | None = None) -> Tensor:
    """Arrange pictures in a grid.

    Args:
        pictures: Pictures or clips (B, C, ..., H, W).
        columns: Pictures in each row; None: the square root of B, rounded up.

    Returns:
        The grid (C, ..., rows * H, columns * W); cells without a picture are 0.
    """
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = [torch.cat(list(row), dim=-1) for row in pictures.split(columns)]
    rows = [torch.nn.functional.pad(row, (0, rows[0].shape[-1] - row.shape[-1])) for row in rows]
    return torch.cat(rows, dim=-2)


def to_pil(picture: Tensor) -> Image.Image:
    """A picture (3, H, W) in [0, 1] as an image of Pillow."""
    return Image.fromarray(to_bytes(picture).permute(1, 2, 0).contiguous().numpy())
