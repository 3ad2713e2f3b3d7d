"""The files of folders that are not hidden; images as clean-fid lists them, for training and evaluation."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

# clean-fid's list, in which upper case counts for three endings only (`cleanfid.utils.EXTENSIONS`).
ENDINGS = (".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp", ".npy", ".JPEG", ".JPG", ".PNG")


def list_images(folder: Path) -> list[Path]:
    """All images in `folder` and its subfolders, sorted by their path as text, as clean-fid's glob finds them.

    Files and folders whose name starts with a dot are left out. Links to folders are followed, except to a folder that
    contains the link.

    Raises:
        ValueError: If `folder` is not a folder.
    """
    return [file for file in list_files(folder) if is_image(file)]


def is_image(file: Path) -> bool:
    """Whether `list_images` lists a file with this name."""
    return file.suffix in ENDINGS


def list_files(folder: Path, samples: str = "images", endings: Sequence[str] = ENDINGS) -> list[Path]:
    """All files in `folder` and its subfolders that are not hidden; see `list_images`.

    Args:
        folder: The folder.
        samples: What it should contain, for messages.
        endings: The endings of such files, for messages.

    Raises:
        ValueError: If `folder` is not a folder.
    """
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        hint = "; unpack it first" if folder.suffix.lower() in (".zip", ".gz", ".tgz", ".7z", ".rar") else ""
        raise ValueError(f"{folder} {problem}, expected a folder of {samples} ({', '.join(endings[:10])}){hint}")
    return sorted(walk(folder), key=str)


def visible(folder: Path, *patterns: str) -> list[Path]:
    """The paths in `folder` that match one of several patterns of `Path.glob`, sorted, without hidden ones.

    macOS writes a hidden file "._NAME" beside each NAME to disks of other systems.
    """
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def walk(folder: Path, parents: Sequence[tuple[int, int]] = ()) -> Iterator[Path]:
    """The files of a folder and its subfolders that are not hidden; a link to a folder that contains it is left out."""
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in parents:  # a link to a folder that contains it
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path):  # False for a link to itself, for which `entry.is_dir` raises an error
                yield from walk(folder / entry.name, (*parents, identity))
            else:
                yield folder / entry.name
