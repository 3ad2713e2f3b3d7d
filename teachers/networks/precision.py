"""Precision of float32 matrix products and convolutions on CUDA: IEEE float32, or TF32 with 10 bits of mantissa."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_products(tf32: bool = False) -> Iterator[None]:
    """A context that sets how CUDA multiplies float32 matrices and convolves float32 samples.

    PyTorch's own defaults differ: convolutions use TF32, matrix products do not.

    Args:
        tf32: Whether both use TF32; otherwise neither does.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32  # cudnn.flags would also disable cuDNN
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
