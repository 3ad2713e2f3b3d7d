"""Read folders of images with the colour conversion and the order of clean-fid."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

from eval.features.extractors import Extractor
from eval.features.resize import center_crop_resize

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
HIGH_DEPTH_MODES = ("I", "F")  # Pillow modes with more than 8 bits per channel; convert("RGB") would clip them


def files_in(folder: Path) -> list[Path]:
    """All image files in `folder` and its subfolders, sorted by path.

    Raises:
        ValueError: If `folder` is not a folder.
    """
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {problem}; expected a folder of images ({', '.join(sorted(SUFFIXES))})")
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)


def read_image(file: Path) -> Tensor:
    """Read an image as RGB (3, H, W) in [0, 1].

    As in clean-fid, a grey channel is repeated and an alpha channel is dropped.

    Raises:
        ValueError: If the file is damaged or has more than 8 bits per channel.
    """
    try:
        with Image.open(file) as image:
            if image.mode.startswith(HIGH_DEPTH_MODES):
                raise ValueError(f"{file} has more than 8 bits per channel (mode {image.mode}); save it as 8-bit RGB")
            return pil_to_tensor(image.convert("RGB")).float() / 255
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image ({error}); remove or replace it") from error


def image_warnings(folder: Path, size: int | None = None) -> list[str]:
    """Warnings about images that are converted or differ in size, one sentence each. Reads headers only.

    Files that cannot be read are skipped here; `read_image` raises an error for them.

    Args:
        folder: A folder of images.
        size: The size that images are resized to (`eval.features.resize`), or None.
    """
    grey, transparent, sizes, count = 0, 0, Counter[tuple[int, int]](), 0
    for file in files_in(folder):
        with contextlib.suppress(OSError, SyntaxError, Image.DecompressionBombError), Image.open(file) as image:
            count += 1
            grey += image.mode in ("1", "L", "LA")
            transparent += image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
            sizes[image.size] += 1
    warnings = []
    if grey:
        warnings.append(
            f"{grey} of {count} images in {folder} are grey: the channel is repeated three times, as in clean-fid"
        )
    if transparent:
        warnings.append(
            f"{transparent} of {count} images in {folder} have transparency: it is ignored, as in clean-fid"
        )
    if len(sizes) > 1 and size is None:
        (width, height), most = sizes.most_common(1)[0]
        warnings.append(
            f"the images in {folder} have {len(sizes)} different sizes ({most} of {count} are {width} x {height}) and "
            "are resized one by one for the features; --size crops and resizes all of them to one size first"
        )
    return warnings


def read_batches(files: list[Path], batch_size: int) -> Iterator[Tensor]:
    """Read images in order as batches (B, 3, H, W), B at most `batch_size`; a change of size starts a new batch."""
    for _, group in itertools.groupby(map(read_image, files), key=lambda image: image.shape):
        while batch := list(itertools.islice(group, batch_size)):
            yield torch.stack(batch)


def features_of_folder(folder: Path, extractor: Extractor, batch_size: int = 32, size: int | None = None) -> Tensor:
    """Features (N, D) of all images in `folder`, in the order of `files_in`.

    Args:
        folder: A folder of images.
        extractor: The feature extractor.
        batch_size: Images per batch.
        size: Crop and resize images to this many pixels a side first; None leaves them unchanged.

    Raises:
        ValueError: If there are fewer than two images, or one of them cannot be read or has a wrong size.
    """
    files = files_in(folder)
    if len(files) < 2:
        raise ValueError(f"{folder} contains {len(files)} images; a distribution needs at least 2, better thousands")
    features = []
    with tqdm(total=len(files), desc=folder.name or str(folder), unit="img") as bar:
        for batch in read_batches(files, batch_size):
            features.append(extractor(center_crop_resize(batch, size)).cpu())
            bar.update(len(batch))
    return torch.cat(features)
