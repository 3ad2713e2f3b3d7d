"""Checks of .tar and .parquet files from their headers, before `datasets` reads them into memory or copies them."""

import tarfile
from pathlib import Path
from typing import Any

from teachers.loading.prompts import import_optional
from teachers.support.limits import ROW_BYTES
from teachers.support.regular import check_regular
from teachers.support.text import printable

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"(\xb5/\xfd": "zstd"}
PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")  # endings of members that `datasets` decompresses
MAX_RATIO = 100  # of the size of a column of a .parquet file to its compressed size; text has about 10


def check_archive(file: Path) -> None:
    """Check a .tar or .parquet file.

    Raises:
        ValueError: If a member or a value could be larger than `ROW_BYTES`, or the file is compressed as a whole.
    """
    check_regular(file)
    if file.suffix.lower() == ".tar":
        _check_tar(file)
    elif file.suffix.lower() == ".parquet":
        _check_parquet(file)


def _check_tar(file: Path) -> None:
    with file.open("rb") as stream:
        start = stream.read(8)
    kind = next((kind for magic, kind in COMPRESSED.items() if start.startswith(magic)), None)
    if kind is not None:
        raise ValueError(f"{printable(file)} must be a .tar that is not compressed, got {kind}; decompress it first")
    most = ROW_BYTES.value
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                where = f"{printable(member.name)[:200]} in {printable(file)}"
                if member.isreg() and member.size > most:
                    raise ValueError(
                        f"{where} must have at most {most:,} bytes, got {member.size:,}; {ROW_BYTES.advice}"
                    )
                if member.isreg() and member.name.lower().endswith(PACKED):
                    raise ValueError(f"{where} must not be compressed; decompress the files in the archive")
    except (tarfile.TarError, EOFError):
        return  # reading the archive reports it


def _check_parquet(file: Path) -> None:
    parquet = import_optional("pyarrow.parquet", f"reading {file}")
    most = ROW_BYTES.value
    try:
        with parquet.ParquetFile(file) as stored:
            metadata: Any = stored.metadata
            for group in range(metadata.num_row_groups):
                row_group = metadata.row_group(group)
                for number in range(row_group.num_columns):
                    column = row_group.column(number)
                    size = column.total_uncompressed_size
                    if size > most and size > MAX_RATIO * max(1, column.total_compressed_size):
                        raise ValueError(
                            f"the column {printable(column.path_in_schema)} of {printable(file)} must have at most "
                            f"{most:,} bytes decompressed if its compression ratio is above {MAX_RATIO}, got "
                            f"{size:,}; {ROW_BYTES.advice}"
                        )
    except (OSError, import_optional("pyarrow", f"reading {file}").ArrowException):
        return  # reading the table reports it
