"""One size for images of any shape, as evaluations on COCO do it: the middle square, then Pillow's Lanczos filter.

The filter widens with the factor, so shrinking does not alias (Parmar et al., arXiv 2104.11222, measure what happens
otherwise). Real and drawn images go through the same function.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def square(images: Tensor, size: int | None) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] -> (B, 3, size, size), in 8 bits as saved files are; None leaves them as they are.

    An image with a NaN in it comes back as NaN throughout, so that nobody takes it for a black one.
    """
    if size is None or images.shape[2:] == (size, size):
        return images
    side = min(images.shape[2:])
    top, left = (round((extent - side) / 2) for extent in images.shape[2:])  # as torchvision's center_crop
    broken = images.isnan().flatten(1).any(dim=1)
    cut = images[:, :, top : top + side, left : left + side].nan_to_num().clamp(0, 1)
    arrays = cut.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    small = np.stack([np.asarray(Image.fromarray(a).resize((size, size), Image.Resampling.LANCZOS)) for a in arrays])
    made = torch.from_numpy(small).permute(0, 3, 1, 2).to(images.device, torch.float32) / 255
    return made.masked_fill(broken[:, None, None, None], torch.nan)
