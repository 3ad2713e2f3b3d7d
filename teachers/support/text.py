"""Text files: UTF-8 only, and lines end at line feeds and carriage returns only."""

import re
from pathlib import Path

from teachers.support.limits import TEXT_BYTES, Limit

UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")  # UTF-32 files start with them too, or with zero bytes


def read_text(file: Path, limit: Limit = TEXT_BYTES) -> str:
    """Read a UTF-8 file, with or without a byte-order mark. Line ends are kept as they are.

    Args:
        file: The file.
        limit: The largest size of the file in bytes; no more is read.

    Returns:
        The text without the byte-order mark.

    Raises:
        ValueError: If it is larger than `limit` or is not UTF-8; the message names the file and the line.
        OSError: If it cannot be opened.
    """
    most = limit.value
    with file.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{printable(file)} must have at most {most:,} bytes, but has more; {limit.advice}")
    if content.startswith(UTF_16_MARKS) or b"\0" in content:
        line = content.partition(b"\0")[0].count(b"\n") + 1
        raise ValueError(f"{printable(file)}, line {line}: this is UTF-16 or binary data; save the file as UTF-8 text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise ValueError(
            f"{printable(file)}, line {line}: the byte 0x{byte:02x} is not UTF-8 text; save the file as UTF-8"
        ) from error


def split_lines(text: str) -> list[str]:
    """The lines of `text`, which end with "\\n", "\\r\\n" or "\\r".

    `str.splitlines` also cuts at vertical tabs, form feeds, U+0085, U+2028 and others, which occur inside captions.
    """
    return re.split(r"\r\n|\n|\r", text)


def read_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 file; see `read_text` and `split_lines`."""
    return split_lines(read_text(file))


def printable(value: object) -> str:
    """`value` as text on one line: control characters, line breaks and lone surrogates become escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(value))
