"""From a row's image to the pixels that a teacher encodes."""

import math

from torch import Tensor

from distill.data.images import Row
from teachers.support.text import printable


def row_pixels(row: Row, height: int, width: int, captioned: bool) -> tuple[Tensor, bool] | str:
    """Decode the image of a row and fit it to a teacher.

    Args:
        row: The row.
        height: Height of the result in pixels.
        width: Width of the result in pixels.
        captioned: Whether a caption is needed.

    Returns:
        The image (3, height, width) in [-1, 1] and whether it was transparent; or why the row cannot be used.
    """
    from torchvision.transforms.v2 import functional as V  # torchvision is slow to import

    if captioned and row.caption is None:
        return f"{printable(row.name)} has no caption"
    try:
        decoded = row.decode(max(height, width))
    except ValueError as error:
        return str(error)
    return fit(V.pil_to_tensor(decoded.image), height, width).float() / 127.5 - 1, decoded.transparent


def fit(pixels: Tensor, height: int, width: int) -> Tensor:
    """Scale an image until it covers height x width pixels, and crop its centre.

    Args:
        pixels: An image (C, H, W) of bytes.
        height: Height of the result.
        width: Width of the result.

    Returns:
        The image (C, height, width), with the aspect ratio of the original and without borders.
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
