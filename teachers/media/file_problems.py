"""Messages about files of clips and sounds that cannot be read."""

import io
from pathlib import Path
from typing import BinaryIO

from teachers.support.regular import NotRegular, open_regular
from teachers.support.text import printable

START = 100  # bytes


class Refused(ValueError):
    """A file that is readable and cannot be used; the message follows its name."""


def opened(source: Path | bytes) -> BinaryIO:
    """A stream of a regular file or of its contents. Decoders receive no names, which could be addresses."""
    return io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)


def start_of(source: Path | bytes) -> bytes:
    """The first bytes of a file or of its contents."""
    with opened(source) as stream:
        return stream.read(START)


def problem(error: Exception, source: Path | bytes, kind: str) -> str:
    """Why a file cannot be used, as the rest of a sentence that begins with its name.

    Args:
        error: What the decoder raised.
        source: The file, or its contents.
        kind: What it should be, such as "a clip".
    """
    if isinstance(error, Refused):
        return str(error)
    reason = printable(" ".join(_text(error).split())) or type(error).__name__
    if isinstance(error, NotRegular):
        return f"cannot be read as {kind}: {printable(error)}"
    if not isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        reason = _content_problem(start_of(source)) or reason
    return f"cannot be read as {kind} ({reason}); remove or replace it"


def _text(error: Exception) -> str:
    """The message of an error; FFmpeg's last message is better than its numbers."""
    log = getattr(error, "log", None)
    if isinstance(log, tuple) and log[2:]:
        return f"{getattr(error, 'strerror', '')}: {log[2]}"
    return str(getattr(error, "strerror", None) or error)


def _content_problem(start: bytes) -> str | None:
    if not start:
        return "it is empty"
    if start.lstrip().startswith(b"<"):
        return "it is an HTML or XML page"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; run git lfs pull"
    return None
