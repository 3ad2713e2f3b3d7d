"""Archives of NumPy arrays (.npz), whose small files can inflate to terabytes."""

import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from teachers.support.limits import ARRAY_BYTES


def check_npz(file: Path, names: Collection[str]) -> None:
    """Check the sizes that an .npz file states, before its arrays are decompressed or allocated.

    Args:
        file: The file.
        names: The arrays that are read; others are not checked.

    Raises:
        ValueError: If it is not an archive of arrays, has one of them twice, its arrays are larger than `ARRAY_BYTES`
            together, or an array has a shape that does not fit the size of its data. The message follows the file's
            name.
    """
    most = ARRAY_BYTES.value
    with zipfile.ZipFile(file) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.removesuffix(".npy") in names]
        stored = [entry.filename.removesuffix(".npy") for entry in entries]
        if repeated := next((name for name in stored if stored.count(name) > 1), None):
            raise ValueError(f"it must have one array {repeated}, got {stored.count(repeated)}")
        total = sum(entry.file_size for entry in entries)
        if total > most:
            raise ValueError(f"its arrays must have at most {most:,} bytes, got {total:,}; {ARRAY_BYTES.advice}")
        for entry in entries:
            with archive.open(entry) as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(stream)
            size = kind.itemsize
            for length in shape:
                size *= int(length)
            if size > entry.file_size and not kind.hasobject:  # NumPy refuses objects
                raise ValueError(
                    f"the array {entry.filename} must have the data of its shape {shape} and type {kind}, got "
                    f"{entry.file_size:,} bytes"
                )
