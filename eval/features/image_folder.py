"""Reading folders of images, in the colours and the order in which clean-fid reads them."""

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
from eval.features.resize import square

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
DEEP = ("I", "F")  # Pillow's modes of more than 8 bits a channel, which it would clip to white in silence


def files_in(folder: Path) -> list[Path]:
    """Every image file in `folder` and below it, sorted. Raises ValueError where there is no such folder."""
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {what}; name a folder of images ({', '.join(sorted(ENDINGS))})")
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)


def read(file: Path) -> Tensor:
    """One image as RGB (3, H, W) in [0, 1]: grey is repeated, an alpha channel dropped, as clean-fid does.

    Raises ValueError where the file cannot be read whole, or has more than 8 bits a channel.
    """
    try:
        with Image.open(file) as image:
            if image.mode.startswith(DEEP):
                raise ValueError(f"{file} has more than 8 bits a channel (mode {image.mode}); save it as 8-bit RGB")
            return pil_to_tensor(image.convert("RGB")).float() / 255
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image; take it out or make it anew ({error})") from error


def image_warnings(folder: Path, size: int | None = None) -> list[str]:
    """What was done to images that are not all RGB of one size, a sentence each. Reads headers only.

    `size` is that of `eval.features.resize`, None where images are judged as they are. A file that cannot be read is left to
    `read`.
    """
    grey, clear, sizes, count = 0, 0, Counter[tuple[int, int]](), 0
    for file in files_in(folder):
        with contextlib.suppress(OSError, SyntaxError, Image.DecompressionBombError), Image.open(file) as image:
            count += 1
            grey += image.mode in ("1", "L", "LA")
            clear += image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
            sizes[image.size] += 1
    out = []
    if grey:
        out.append(f"{grey} of {count} images in {folder} are grey: repeated to three channels, as clean-fid does.")
    if clear:
        out.append(f"{clear} of {count} images in {folder} have transparency: dropped, as clean-fid does.")
    if len(sizes) > 1 and size is None:
        (width, height), most = sizes.most_common(1)[0]
        out.append(
            f"the images in {folder} are of {len(sizes)} sizes ({most} of {count} are {width} x {height}): each was "
            "resized on its own; --size brings all to the same middle square first."
        )
    return out


def batches(files: list[Path], size: int) -> Iterator[Tensor]:
    """The images in order as (B, 3, H, W), B at most `size`; neighbours of one size share a batch."""
    for _, group in itertools.groupby(map(read, files), key=lambda image: image.shape):
        while batch := list(itertools.islice(group, size)):
            yield torch.stack(batch)


def features_of_folder(folder: Path, extractor: Extractor, batch_size: int = 32, size: int | None = None) -> Tensor:
    """The features (N, D) of all images in `folder`, file by file in sorted order; `size` is `eval.features.resize`'s.

    Raises ValueError where there are fewer than two, or one of them cannot be read or judged.
    """
    files = files_in(folder)
    if len(files) < 2:
        raise ValueError(f"{folder} holds {len(files)} images; a distribution needs at least two, better thousands")
    features = []
    with tqdm(total=len(files), desc=folder.name or str(folder), unit="img") as bar:
        for batch in batches(files, batch_size):
            features.append(extractor(square(batch, size)).cpu())
            bar.update(len(batch))
    return torch.cat(features)
