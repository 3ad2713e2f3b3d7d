"""File helpers: SHA-256 hashes, and writes that replace a file or folder as a whole."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from teachers.support.regular import NotRegular, check_target, open_regular

if TYPE_CHECKING:  # torch is slow to import
    from torch import Tensor

BLOCK = 2**20  # bytes that are read at a time
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}  # the disk's errors, not the program's
TEMPORARY = re.compile(r"\.(?P<name>.+?)(?:\.(?P<pid>\d+))?\.tmp")  # names of `atomic_write`
REPLACED = ".old"  # added to the name of a folder while it is replaced


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
            with open_regular(part) as file:
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
    replaces `path`. If it raises, the temporary file or folder is removed and `path` is unchanged. If a process is
    killed while it writes, `remove_stale` cleans up.

    Args:
        path: The file or folder to write. Its parent folder must exist.
        concurrent: Whether several processes may write `path` at the same time; each then has its own temporary name.

    Raises:
        OSError: If the disk is full or cannot be written, with the path. Other errors of the block are unchanged.
        NotRegular: If `path` is a device or a FIFO, or a folder where the block writes a file, or the reverse.

    Yields:
        The temporary path, which does not exist yet: `.NAME.tmp`, or `.NAME.PID.tmp` if `concurrent`.

    Example:
        >>> with atomic_write(folder / "report.json") as temporary:
        ...     temporary.write_text(text)
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp" if concurrent else f".{path.name}.tmp")
    check_target(path)
    remove(temporary)
    try:
        yield temporary
        _check_same_kind(temporary, path)
        written = [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]
        _set_usual_mode(written)
        for file in written:
            flush_to_disk(file)
        if path.is_dir():
            replaced = path.with_name(f".{path.name}{REPLACED}.tmp")
            remove(replaced)
            path.replace(replaced)
            temporary.replace(path)
            remove(replaced)
        else:
            temporary.replace(path)
        flush_to_disk(path.parent)
    except BaseException as error:
        remove(temporary)
        if _is_unwritable(error):
            raise OSError(f"{path} cannot be written ({' '.join(str(error).split())[:200]})") from error
        raise


def _set_usual_mode(written: Sequence[Path]) -> None:
    """Give files that only their owner may read, as safetensors writes them, the mode of every other new file."""
    private = [file for file in written if file.is_file() and not file.is_symlink() and not file.stat().st_mode & 0o077]
    if not private or os.name == "nt":
        return
    probe = private[0].with_name(f".{os.getpid()}.mode.tmp")  # the umask cannot be read without changing it
    remove(probe)
    handle = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    usual = os.fstat(handle).st_mode & 0o777
    os.close(handle)
    remove(probe)
    for file in private:
        file.chmod(usual | file.stat().st_mode)


def _check_same_kind(temporary: Path, path: Path) -> None:
    """Raise NotRegular if a file would replace a folder, whose content would be lost, or a folder a file."""
    if path.exists() and path.is_dir() != temporary.is_dir():
        wanted, found = ("folder", "file") if temporary.is_dir() else ("file", "folder")
        raise NotRegular(f"{path} must be a {wanted}, got a {found}; remove or rename it")


def _is_unwritable(error: BaseException) -> bool:
    """Whether `error` means that the disk is full or cannot be written; torch and safetensors have their own types."""
    from safetensors import SafetensorError

    if isinstance(error, OSError):
        return error.errno in UNWRITABLE
    return isinstance(error, SafetensorError) or (isinstance(error, RuntimeError) and "file write failed" in str(error))


def remove_stale(folder: Path, patterns: Iterable[str]) -> None:
    """Delete temporary files and folders that killed processes have left. This process must hold the folder's lock.

    A folder that a killed process was replacing gets its name back if the new version was not in place yet.

    Args:
        folder: The folder.
        patterns: Which temporary names of `atomic_write` are deleted, relative to the folder, such as "cache/.*.tmp".
    """
    root = folder.resolve()
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        found = TEMPORARY.fullmatch(path.name)
        if not found or not path.parent.resolve().is_relative_to(root):  # a link to another folder
            continue
        target = path.with_name(found["name"].removesuffix(REPLACED))
        if found["name"].endswith(REPLACED) and not target.exists():
            path.replace(target)
        else:
            remove(path)


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
