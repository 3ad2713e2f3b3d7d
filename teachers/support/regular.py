"""Opening files that users and strangers name: regular files only.

A FIFO, a socket or a device can block a reader for ever or have no end, and a link can lead a writer to another file.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Opening a FIFO or a terminal must neither wait nor change anything.
READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0)
READ |= getattr(os, "O_BINARY", 0)
APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class NotRegular(OSError, ValueError):
    """A path that is not what it must be: a special file, a link, or a folder in the place of a file."""


def kind_of(mode: int) -> str:
    """What a file of mode `st_mode` is, with its article, such as "a FIFO"."""
    return KINDS.get(stat.S_IFMT(mode), "a special file")


def check_regular(path: Path) -> None:
    """Check that `path` is a regular file or a link to one.

    Raises:
        NotRegular: If it is something else.
        OSError: If it does not exist or cannot be read.
    """
    _check(path, path.stat().st_mode)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; every file that a user or a stranger names is opened with this function.

    Raises:
        NotRegular: If it is a folder, a FIFO, a socket or a device.
        OSError: If it cannot be opened.
    """
    check_regular(path)  # opening a device can have effects, so its kind is read before
    handle = os.open(path, READ)
    try:
        _check(path, os.fstat(handle).st_mode)  # it may have been replaced meanwhile
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: Path, most: int = -1) -> bytes:
    """The content of a regular file, or its first `most` bytes; see `open_regular`.

    Raises:
        OSError: If it cannot be opened or read, with its name.
    """
    with open_regular(path) as file:
        try:
            return file.read(most) or b""  # None: a file of the kernel that has nothing to read now
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def append_line(path: Path, line: str) -> None:
    """Append a line to a regular file, which is created if there is none; links are not followed.

    Raises:
        NotRegular: If it is not a regular file.
        OSError: If it cannot be written; an incomplete line is removed.
    """
    if path.is_symlink():
        raise NotRegular(f"{path} must be a file, got a link; remove it")
    handle = os.open(path, APPEND, 0o666)
    with os.fdopen(handle, "ab", buffering=0) as file:  # a buffer would be written again when the file is closed
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegular(f"{path} must be a file, got {kind_of(status.st_mode)}; remove it")
        try:
            rest = f"{line}\n".encode()
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            os.ftruncate(handle, status.st_size)
            raise


def check_special(folder: Path) -> None:
    """Check that a folder and its subfolders, one level deep, hold regular files only, before other readers open them.

    Raises:
        NotRegular: With the first file that is a FIFO, a socket or a device.
    """
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if os.path.isdir(entry.path):
            with os.scandir(entry.path) as inner:
                _refuse_special(inner)
    _refuse_special(found)


def check_owned(folder: Path, names: Sequence[str], folders: Sequence[str] = ()) -> None:
    """Check what a command writes in `folder`: links would lead it to other files, and special files would block it.

    Args:
        folder: The folder that the command writes.
        names: Names of files and folders in it, and everything in these folders; what does not exist is not checked.
        folders: Those of `names` that must be folders.

    Raises:
        NotRegular: With the first path that is a link or a special file, or a file in the place of a folder.
    """
    for path in (folder / name for name in names):
        inside = (Path(root) / name for root, inner, files in os.walk(path) for name in (*inner, *files))
        for found in (path, *inside):
            try:
                mode = found.lstat().st_mode
            except FileNotFoundError:  # it does not exist yet, or was a temporary file of another process
                continue
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise NotRegular(f"{found} must be a file or a folder, got {kind_of(mode)}; remove or rename it")
        if path.name in folders and path.exists() and not path.is_dir():
            raise NotRegular(f"{path} must be a folder, got a file; remove or rename it")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path`, with its links followed, is in `folder`, or in the blobs of a snapshot in the Hub's cache."""
    target, root = path.resolve(), folder.resolve()
    snapshot = root.parent.name == "snapshots" and target.is_relative_to(root.parents[1] / "blobs")
    return target.is_relative_to(root) or snapshot


def outside_links(folder: Path) -> list[Path]:
    """The links in `folder` that lead out of it, and its special files; links to folders are not followed."""
    found = []
    for root, inner, names in os.walk(folder):
        for path in (Path(root) / name for name in sorted((*inner, *names))):
            mode = path.lstat().st_mode
            is_link = stat.S_ISLNK(mode)
            if (is_link and not is_inside(path, folder)) or kind_of(mode) not in ("a file", "a folder", "a link"):
                found.append(path)
    return found


def check_target(path: Path) -> None:
    """Check that a file or folder may be written at `path`: a device or a FIFO is never replaced.

    Raises:
        NotRegular: If it is one, or a name in /dev or /proc, such as /dev/stdout.
    """
    parent = path.parent.resolve()
    if parent == Path("/dev") or parent.parts[1:2] in (("proc",), ("sys",)):
        raise NotRegular(f"the output {path} must be a file or a folder, got a name in {parent}; choose another file")
    try:
        mode = path.stat().st_mode
    except OSError:  # it does not exist yet, or is a broken link, which is replaced
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise NotRegular(f"the output {path} must be a file or a folder, got {kind_of(mode)}; choose another file")


def _check(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotRegular(f"{path} must be a regular file, got {kind_of(mode)}")


def _refuse_special(entries: Iterable["os.DirEntry[str]"]) -> None:
    for entry in entries:
        try:
            mode = os.stat(entry.path).st_mode
        except OSError:  # a broken link: what opens it reports it
            continue
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            _check(Path(entry.path), mode)
