"""Resize images of any shape to one square size: center crop, then Pillow's Lanczos filter.

This is the usual preprocessing of evaluations on COCO. The filter widens with the reduction factor, so reduced images
do not alias (effects of aliasing: Parmar et al., arXiv 2104.11222). Real and generated images use the same function.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def center_crop_resize(images: Tensor, size: int | None) -> Tensor:
    """Crop the center square of each image and resize it.

    Args:
        images: Images (B, 3, H, W) in [0, 1].
        size: Pixels per side of the result; None leaves the images unchanged.

    Returns:
        Images (B, 3, size, size) in [0, 1] with 8-bit values, as saved files have. An image that contains NaN is NaN
        in every pixel: conversion to 8 bits would make it black.
    """
    if size is None or images.shape[2:] == (size, size):
        return images
    side = min(images.shape[2:])
    top, left = (round((extent - side) / 2) for extent in images.shape[2:])  # as torchvision's center_crop
    has_nan = images.isnan().flatten(1).any(dim=1)
    cropped = images[:, :, top : top + side, left : left + side].nan_to_num().clamp(0, 1)
    arrays = cropped.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    resized = np.stack([np.asarray(Image.fromarray(a).resize((size, size), Image.Resampling.LANCZOS)) for a in arrays])
    result = torch.from_numpy(resized).permute(0, 3, 1, 2).to(images.device, torch.float32) / 255
    return result.masked_fill(has_nan[:, None, None, None], torch.nan)
