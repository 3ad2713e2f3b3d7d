"""The `sample_size` of a network's config, and sizes of images and clips in a recipe."""

from collections.abc import Mapping
from typing import Any


def height_and_width(sample_size: Any) -> tuple[int, int]:
    """The height and width of a network's `sample_size`, which may be one number.

    Raises:
        ValueError: If it is neither a positive number nor two.
    """
    sizes = [sample_size] * 2 if isinstance(sample_size, int) else list(sample_size or [])
    if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"sample_size of the network must be a number or [height, width], got {sample_size!r}")
    return sizes[0], sizes[1]


def check_sides(size: Mapping[str, float], unit: int) -> None:
    """Check the height and width of `teacher.size`.

    Raises:
        ValueError: If one is not a multiple of `unit` pixels.
    """
    for key in ("height", "width"):
        if size[key] % unit:
            raise ValueError(f"teacher.size.{key} must be a multiple of {unit}, got {size[key]}")
