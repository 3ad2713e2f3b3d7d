"""Text files (UTF-8 only, and lines end at line feeds and carriage returns only), and text that is safe to show."""

import json
import re
import unicodedata
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import Any

from teachers.support.limits import TEXT_BYTES, Limit
from teachers.support.regular import read_bytes

JOINERS = "\u200c\u200d"  # within words of Persian and Hindi, and within emoji
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10))}  # of Windows
LONGEST_NAME = 200  # bytes; file systems take 255, and temporary names are longer
LONGEST_LINE = 300  # characters of a library's message on one line
SINGULAR = {"are": "is", "have": "has", "exceed": "exceeds", "end": "ends"}
VERBS = re.compile(rf"(^|\b(?:and|or) )({'|'.join(SINGULAR)})\b")
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
        OSError: If it cannot be opened, or is not a regular file.
    """
    most = limit.value
    content = read_bytes(file, most + 1)
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


def printable(value: object, lines: bool = False) -> str:
    """`value` as text that is safe to show in a terminal, a table or a page.

    Control characters (of terminals, too), marks that change the direction of text, other invisible characters and lone
    surrogates become escape sequences such as "\\x1b" and "\\u202e". Joiners between letters and all blanks stay.

    Args:
        value: A text, or another object as `str` writes it.
        lines: Whether line feeds and tabs stay too; otherwise the result is one line.
    """
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _is_safe(c, lines) else c.encode("unicode_escape").decode("ascii") for c in text)


def lookalike(name: str, known: Collection[str]) -> str:
    """What to add to a message that `name` is not among `known`: a known name that looks the same; "" without one.

    Names with accents can be written with combined or with separate characters (Unicode normalisation), as systems do
    differently. Both are shown with escape sequences.
    """
    wanted = unicodedata.normalize("NFC", name)
    found = next((other for other in known if unicodedata.normalize("NFC", other) == wanted), None)
    if found is None:
        return ""
    here, there = (text.encode("unicode_escape").decode("ascii") for text in (name, found))
    return f" (it is written {here}, but the file is {there}, which looks the same; rename one of them)"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number of things in words, such as "1 file" or "1,200 files".

    Args:
        count: The number.
        noun: The word for one thing.
        plural: The word for several; None: `noun` with an "s".
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def agree(count: int, predicate: str) -> str:
    """What is said of some things, with its verbs and pronouns in the singular for one thing.

    Args:
        count: The number of things.
        predicate: The rest of a sentence after the things, such as "are skipped or have no caption". Verbs of the
            things are at the beginning and after "and" and "or".
    """
    if count != 1:
        return predicate
    singular = VERBS.sub(lambda found: found[1] + SINGULAR[found[2]], predicate)
    return re.sub(r"\bthey\b", "it", re.sub(r"\btheir\b", "its", singular))


def first_names(names: Collection[object], most: int = 5) -> str:
    """The first `most` names for a message, `printable`, and how many more there are, such as "a, b and 3 more"."""
    shown = ", ".join(printable(name) for name in islice(names, most))
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def shorten(text: str, longest: int) -> str:
    """`text` with at most about `longest` characters: beginning and end, with "..." between them."""
    if len(text) <= longest:
        return text
    return f"{text[: longest * 3 // 4]} ... {text[-longest // 4 :]}"


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    """`text` as one line of at most about `longest` characters, without control characters."""
    lines = split_lines(shorten(text, 4 * longest))  # escaping all of a huge text would take minutes
    return shorten(" ".join(printable(line.strip()) for line in lines if line.strip()), longest)


def cleaned(value: Any) -> Any:
    """Nested lists and dicts of JSON values with every text made `printable`."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {cleaned(key): cleaned(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(entry) for entry in value]
    return value


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON in which letters of all languages stay readable and characters that are not safe are escaped.

    Raises:
        ValueError: If a number is not finite.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return "".join(c if _is_safe(c, lines=True) else json.dumps(c)[1:-1] for c in text)


def folder_name_problem(name: str, reserved: Collection[str] = ()) -> str | None:
    """Why `name` cannot be the name of a new folder on every system; None if it can.

    Args:
        name: The name.
        reserved: Names, in lower case, that have another meaning.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        return "it must be one name"
    if printable(name) != name:
        return "it has control characters or other invisible characters"
    if name[0] in ".-~" or name[-1] in ". " or name[0] == " ":
        return "it must neither begin with a dot, a dash, a tilde or a blank nor end with a dot or a blank"
    if name.partition(".")[0].upper() in DEVICES or name.lower() in reserved:
        return "this name is reserved"
    if len(name.encode()) > LONGEST_NAME:
        return f"it must have at most {LONGEST_NAME} bytes"
    return None


def _is_safe(character: str, lines: bool) -> bool:
    if character in "\n\t":
        return lines
    return character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"
