"""The photographs of Fashion-MNIST, which the makers of the image and the video teacher read."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from teachers.pocket_video.captions import OBJECTS
from teachers.support.arrays import check_npz
from teachers.support.errors import reading
from teachers.support.regular import check_regular


def load_photographs(file: Path, split: str) -> tuple[Tensor, Tensor]:
    """The photographs (N, 28, 28) as bytes and their classes (N,).

    Args:
        file: fashion_mnist.npz.
        split: "train" or "test".

    Raises:
        ValueError: If the file is damaged or has other arrays.
    """
    names = (f"{split}_images", f"{split}_labels")
    with reading(file):
        check_regular(file)
        check_npz(file, names)
        with np.load(file, allow_pickle=False) as stored:
            photographs, labels = (stored[name] for name in names)
    if photographs.dtype != np.uint8 or photographs.shape[1:] != (28, 28):
        raise ValueError(
            f"{file} must have photographs (N, 28, 28) as bytes in {names[0]}, got {photographs.dtype} "
            f"{photographs.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != photographs.shape[:1] or not len(labels):
        raise ValueError(
            f"{file} must have a class for each photograph in {names[1]}, got {labels.dtype} {labels.shape}"
        )
    if not 0 <= labels.min() <= labels.max() < len(OBJECTS):
        raise ValueError(
            f"{file} must have classes from 0 to {len(OBJECTS) - 1} in {names[1]}, got {labels.min()} to {labels.max()}"
        )
    return torch.from_numpy(photographs), torch.from_numpy(labels.astype(np.int64))
