"""Read folders of images with the colour conversion and the order of clean-fid, and folders of clips and sounds."""

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

from eval.config.media_names import WITHOUT_WEIGHTS
from eval.features.extractors import Extractor
from eval.features.resize import center_crop_resize
from teachers.media import Audio, Medium, Video
from teachers.support.colour_profiles import is_srgb
from teachers.support.errors import reads
from teachers.support.images import image_header, read_as_clean_fid
from teachers.support.listing import is_image, list_files, list_images
from teachers.support.text import agree, counted, first_names, printable

ALMOST = {".bmp", ".gif", ".avif", ".heic", ".jfif", ".jp2", ".pgm", ".ppm", ".tif", ".tiff", ".webp"}
MAX_PIXELS = 2**26  # of a batch, so that 32 large photographs are not in memory together
ORIENTATION = 0x0112  # EXIF's tag


def read_image(file: Path) -> Tensor:
    """Read an image as RGB (3, H, W) in [0, 1].

    As in clean-fid, a grey channel is repeated, and an alpha channel and the EXIF orientation are ignored.

    Raises:
        ValueError: If the file is damaged or has more than 8 bits per channel.
    """
    return _read_bytes(file).float().div_(255)


def image_warnings(folder: Path, size: int | None = None) -> list[str]:
    """Warnings about images that are converted or differ in size, one sentence each. Reads headers only.

    Files that cannot be read are skipped here; `read_image` raises an error for them.

    Args:
        folder: A folder of images.
        size: The size that images are resized to (`eval.features.resize`), or None.
    """
    grey, transparent, rotated, profiled, sizes, count = 0, 0, 0, 0, Counter[tuple[int, int]](), 0
    files, name = list_files(folder), printable(folder)
    for file in filter(is_image, files):
        with contextlib.suppress(ValueError), image_header(file) as image:
            count += 1
            rotated += image.getexif().get(ORIENTATION, 1) != 1
            profiled += not is_srgb(image)
            grey += image.mode in ("1", "L", "LA")
            transparent += image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
            sizes[image.size] += 1
    conversions = {
        "are grey: the channel is repeated three times, as in clean-fid": grey,
        "have transparency: it is ignored, as in clean-fid": transparent,
        "have an EXIF orientation: it is ignored, as in clean-fid": rotated,
        "have a colour profile other than sRGB: it is ignored, as in clean-fid; convert to sRGB, as training does when "
        "it reads images": profiled,
    }
    warnings = [
        f"{number} of {counted(count, 'image')} in {name} {agree(number, conversion)}"
        for conversion, number in conversions.items()
        if number
    ]
    if unread := _unread(files):
        warnings.append(_not_read(unread, f" in {name}"))
    if len(sizes) > 1 and size is None:
        (width, height), most = sizes.most_common(1)[0]
        warnings.append(
            f"the images in {name} have {len(sizes)} different sizes ({most} of {count} are {width} x {height}) and "
            "are resized one by one for the features; --size crops and resizes all of them to one size first"
        )
    return warnings


def _unread(files: Iterable[Path]) -> list[str]:
    """The names of images with endings that are not listed."""
    return [file.name for file in files if not is_image(file) and file.suffix.lower() in ALMOST]


def _not_read(names: Sequence[str], where: str = "") -> str:
    predicate = agree(len(names), "are not read, because clean-fid does not list such endings")
    return f"{counted(len(names), 'file')}{where} {predicate}: {first_names(names)}"


def read_batches(files: list[Path], batch_size: int) -> Iterator[Tensor]:
    """Read images in order as batches (B, 3, H, W), B at most `batch_size`; a change of size starts a new batch."""
    for shape, group in itertools.groupby(map(_read_bytes, files), key=lambda image: image.shape):
        most = max(1, min(batch_size, MAX_PIXELS // (shape[1] * shape[2])))
        while images := list(itertools.islice(group, most)):
            batch = torch.empty(len(images), *shape)  # filled image by image: `torch.stack` needs twice the memory
            for index in range(len(images)):
                batch[index] = images[index]
            del images
            yield batch.div_(255)


def _read_bytes(file: Path) -> Tensor:
    """An image as RGB (3, H, W) in bytes; see `read_image`."""
    return pil_to_tensor(read_as_clean_fid(file))


@reads
def features_of_folder(folder: Path, extractor: Extractor, batch_size: int = 32, size: int | None = None) -> Tensor:
    """Features (N, D) of all samples in `folder`: images in the order of `list_images`, clips and sounds by name.

    Args:
        folder: A folder of images, or of clips or sounds for the features of these.
        extractor: The feature extractor.
        batch_size: Samples per batch.
        size: Crop and resize images to this many pixels per side first; None leaves them unchanged.

    Raises:
        ValueError: If there are fewer than two samples, or one of them cannot be read or has a wrong size; if a folder
            of images contains clips or sounds.
    """
    if extractor.medium is not None:
        return _features_of_media(folder, extractor, extractor.medium, batch_size)
    files = list_images(folder)
    _check_no_clips(folder, extractor.name)
    if len(files) < 2:
        unread = _unread(list_files(folder))
        raise ValueError(
            f"{folder} contains {counted(len(files), 'image')}; a distribution needs at least 2, better thousands"
            f"{f'. {_not_read(unread)}' if unread else ''}"
        )
    features = []
    with tqdm(total=len(files), desc=printable(folder.name or folder), unit="img") as bar:
        for batch in read_batches(files, batch_size):
            features.append(extractor(center_crop_resize(batch, size)).cpu())
            bar.update(len(batch))
    return torch.cat(features)


def _check_no_clips(folder: Path, features: str) -> None:
    """Raise ValueError if a folder contains clips or sounds, of which only single pictures would be read, or none."""
    files = list_files(folder)
    for medium in (Video, Audio):
        others = [file for file in files if medium.lists(file) and (not is_picture(file) or is_animated(file))]
        if others:
            raise ValueError(
                f"{folder} must contain images only for the features {features}, but has "
                f"{counted(len(others), medium.noun, medium.plural)} ({first_names([file.name for file in others])}); "
                f"use --features {WITHOUT_WEIGHTS[medium.name]} for {medium.plural}, or move them out of the folder"
            )


def is_picture(file: Path) -> bool:
    """Whether a file with this name may be an image."""
    return is_image(file) or file.suffix.lower() in ALMOST


def is_animated(file: Path) -> bool:
    """Whether an image has several frames; a damaged one has not."""
    with contextlib.suppress(ValueError), image_header(file) as image:
        return getattr(image, "n_frames", 1) > 1
    return False


def _features_of_media(folder: Path, extractor: Extractor, medium: Medium, batch_size: int) -> Tensor:
    files = [file for file in list_files(folder, medium.plural, medium.endings) if medium.lists(file)]
    if len(files) < 2:
        raise ValueError(
            f"{folder} contains {len(files)} {medium.plural}; a distribution needs at least 2, better thousands"
        )
    size, features = max(1, min(batch_size, MAX_PIXELS // math.prod(medium.shape))), []
    with tqdm(total=len(files), desc=printable(folder.name or folder), unit=medium.noun) as bar:
        for part in (files[first : first + size] for first in range(0, len(files), size)):
            samples = torch.stack([medium.judged(medium.read(file).values) for file in part])
            features.append(extractor(samples).cpu())
            bar.update(len(part))
    return torch.cat(features)
