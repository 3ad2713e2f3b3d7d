"""File helpers: SHA-256 hashes, and writes that replace a file or folder as a whole."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is slow to import
    from torch import Tensor

BLOCK = 2**20  # bytes that are read at a time


def sha256(parts: Iterable[bytes | memoryview | Path]) -> str:
    """The SHA-256 of several parts in order.

    Args:
        parts: Bytes, or paths of files whose content is hashed.

    Returns:
        The hash as 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
        else:
            digest.update(part)
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content as 64 hexadecimal digits."""
    return sha256([path])


def tensor_bytes(tensor: "Tensor") -> memoryview:
    """The raw bytes of a tensor in row-major order, for `sha256` and checksums."""
    import torch

    view: memoryview = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return view


@contextmanager
def atomic_write(path: Path, concurrent: bool = False) -> Iterator[Path]:
    """Write a file or folder so that `path` only ever holds a complete version.

    The block writes to a temporary path in the same folder. When it ends, what it wrote is flushed to the disk and
    replaces `path`. If it raises, the temporary file or folder is removed and `path` is unchanged.

    Args:
        path: The file or folder to write. Its parent folder must exist.
        concurrent: Whether several processes may write `path` at the same time; each then has its own temporary name.

    Yields:
        The temporary path, which does not exist yet: `.NAME.tmp`, or `.NAME.PID.tmp` if `concurrent`.

    Example:
        >>> with atomic_write(folder / "report.json") as temporary:
        ...     temporary.write_text(text)
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp" if concurrent else f".{path.name}.tmp")
    remove(temporary)
    try:
        yield temporary
        for file in temporary.rglob("*") if temporary.is_dir() else [temporary]:
            flush_to_disk(file)
        if path.is_dir():
            remove_folder(path)
        temporary.replace(path)
        flush_to_disk(path.parent)
    except BaseException:
        remove(temporary)
        raise


def remove(path: Path) -> None:
    """Delete a file or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Delete a folder; if the process is killed meanwhile, no incomplete folder remains under its name."""
    renamed = path.with_name(f".{path.name}.old.tmp")
    remove(renamed)
    path.replace(renamed)
    remove(renamed)


def flush_to_disk(path: Path) -> None:
    """Flush a file or folder from the system's buffers to the disk (fsync)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows cannot open folders
        return
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some network file systems cannot flush folders
            raise
    finally:
        os.close(handle)
