"""Training and test splits in a folder: only training data is trained on.

Files and folders are assigned to splits by their names, as the `datasets` library does it: "train-0000.parquet",
"my.test.tar", "val/1.png".
"""

import re
from collections.abc import Sequence
from pathlib import Path

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLITS = {word: split for split, words in WORDS.items() for word in words}
NAMED = re.compile(rf"(?:^|[-._ 0-9])({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?=[-._ 0-9]|$)", re.IGNORECASE)


def split_of(name: str) -> str | None:
    """The split that a name of a file or folder says: "train", "validation", "test" or None."""
    found = NAMED.search(name)
    return SPLITS[found[1].lower()] if found else None


def training_files(files: Sequence[Path]) -> list[Path]:
    """The files whose names say that they are for training.

    If none does: those whose names say no split. If all of them are for another split, the list is empty.
    """
    splits = {file: split_of(file.name) for file in files}
    wanted = "train" if "train" in splits.values() else None
    return [file for file in files if splits[file] == wanted]


def in_training_folders(files: Sequence[Path], folder: Path) -> list[Path]:
    """The files in subfolders for training, if `folder` has subfolders for training and for another split; else all."""
    splits = {file: _folder_split(file.relative_to(folder).parent) for file in files}
    if len({split for split in splits.values() if split}) < 2 or "train" not in splits.values():
        return list(files)
    return [file for file in files if splits[file] == "train"]


def _folder_split(folder: Path) -> str | None:
    return next((split for part in folder.parts if (split := split_of(part))), None)
