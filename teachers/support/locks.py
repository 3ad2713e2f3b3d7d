"""Locks of folders: two commands never write into one folder, and a folder is not replaced while it is read.

The operating system releases a lock when its process ends, so a killed command never blocks the next one. Locks are
advisory, and some network file systems do not support them; commands then print a warning and continue.
"""

import os
import re
import socket
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from teachers.support.files import remove_stale
from teachers.support.regular import check_owned
from teachers.support.text import printable

try:
    import fcntl
except ImportError:  # Windows has no fcntl; folders are not locked there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a FIFO must not block
HOLDER = re.compile(r"process \d{1,10} on [\w.-]{1,255}")


@contextmanager
def lock_folder(
    folder: Path,
    what: str,
    advice: str,
    temporary: Sequence[str] = (),
    owned: Sequence[str] = (),
    folders: Sequence[str] = (),
) -> Iterator[None]:
    """Create a folder that this process writes, and lock it.

    Args:
        folder: The folder.
        what: What the folder is, for messages, such as "the run's folder".
        advice: How to choose another folder, such as "give this run another name (name=...)".
        temporary: Patterns of temporary names in the folder; what killed processes have left there is removed.
        owned: Names of what the command writes in the folder; they must be no links and no special files.
        folders: Those of `owned` that must be folders.

    Raises:
        ValueError: If the folder cannot be written, is in use by another process, or holds a link or a special file at
            a name of `owned`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
    except OSError as error:
        raise ValueError(f"{what} {folder} cannot be written ({error.strerror}); {advice}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{folder / LOCK} must be a regular file; remove it, or {advice}")
    with os.fdopen(handle, "r+", errors="replace", encoding="utf-8") as lock:
        if not _lock(handle, exclusive=True, wait=False):
            holder = HOLDER.match(lock.read(300))
            raise ValueError(
                f"{what} {folder} is in use by another command ({holder[0] if holder else 'unknown process'}); "
                f"wait until it ends, or {advice}"
            )
        check_owned(folder, owned, folders)
        remove_stale(folder, temporary)
        try:
            if os.fstat(handle).st_nlink > 1:  # a hard link: the text would be written to another file, too
                raise OSError
            lock.seek(0)
            lock.truncate()
            lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            lock.flush()
        except OSError:  # also on a full disk: the lock holds without its text
            pass
        yield


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other processes from replacing `folder` inside the block. Nothing is written into it.

    Args:
        folder: An exported pipeline. While another process replaces it, the block waits.
    """
    with _locked(folder, exclusive=False, message=f"waiting until {folder} is written by another process"):
        yield


@contextmanager
def replaced(folder: Path) -> Iterator[None]:
    """Replace `folder` inside the block. While other processes `hold` it, the block waits.

    Args:
        folder: The folder, which need not exist.
    """
    with _locked(folder, exclusive=True, message=f"waiting until no other process reads {folder}"):
        yield


@contextmanager
def _locked(folder: Path, exclusive: bool, message: str) -> Iterator[None]:
    """Lock the folder itself, so that no file has to be created in the folder of somebody else."""
    while True:
        try:
            handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        except OSError:  # it does not exist yet, or cannot be opened, as on Windows
            yield
            return
        try:
            if not _lock(handle, exclusive, wait=False):
                print(printable(message), flush=True)
                _lock(handle, exclusive, wait=True)
            if _is_same(handle, folder):
                yield
                return
        finally:
            os.close(handle)


def _is_same(handle: int, folder: Path) -> bool:
    """Whether `folder` was not replaced while its lock was waited for."""
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except OSError:
        return False


def _lock(handle: int, exclusive: bool, wait: bool) -> bool:
    """Lock an open file or folder; returns whether the lock is held, also if there are no locks here."""
    if fcntl is None:
        return True
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(handle, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if exclusive and not stat.S_ISDIR(os.fstat(handle).st_mode):
            warnings.warn(
                f"this file system does not support locks ({error.strerror}); start no second command in this folder",
                stacklevel=4,
            )
    return True
