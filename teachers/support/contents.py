"""SHA-256 hashes of files and folders by content, cheap to repeat for files that did not change.

A hash is remembered with the file's path, device, inode, size, modification time and change time, in this process and,
for large files, in `~/.cache/fewstep/contents`. Programs can set a modification time but not a change time, so a file
that was replaced or edited is read again, even if its size and modification time are the same. A file that changed less
than `SETTLED` seconds ago is never remembered, because a second change could carry the same time. What this cannot
notice: storage that changes beneath the file system, and network file systems that report old change times.
"""

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from teachers.support.checksums import Damaged, read_sealed_json, write_sealed_json
from teachers.support.files import sha256, sha256_file
from teachers.support.listing import walk
from teachers.support.regular import check_regular

LARGE = 2**25  # bytes from which a hash is remembered on disk too
SETTLED = 2.0  # seconds; coarser than the clocks of common file systems
HUB_BLOB = re.compile(r"[\\/]blobs[\\/][0-9a-f]{64}$")  # a large file in the Hub's cache
IGNORED = (".md", ".gitattributes", ".gitignore")  # endings of files that no loader reads

_remembered: dict[str, tuple[list[int], str]] = {}


def file_content(file: Path) -> str:
    """The SHA-256 of a file's content, from memory if the file did not change; see the module's docstring.

    Raises:
        ValueError: If it is a file of the Hub's cache that is named by another SHA-256, or is not a regular file.
    """
    check_regular(file)
    path, stamp = str(file.resolve()), _stamp(file)
    known = _remembered.get(path) or (_read(path) if stamp[2] >= LARGE else None)
    if known is not None and known[0] == stamp:
        _remembered[path] = known
        return known[1]
    found = sha256_file(file)
    if HUB_BLOB.search(path) and not path.endswith(found):
        raise ValueError(
            f"{path} is damaged: the Hub's cache names files by their SHA-256; delete it to download it again"
        )
    settled = time.time() - max(stamp[3:]) / 1e9 > SETTLED
    if settled and os.name == "posix" and _stamp(file) == stamp:  # other systems have no change time
        _remembered[path] = stamp, found
        if stamp[2] >= LARGE:
            _write(path, stamp, found)
    return found


def folder_contents(folder: Path) -> dict[str, str]:
    """The hashes of all files in a folder, by relative name; hidden files and documentation are left out."""
    files = dict(_files(folder))
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return dict(zip(files, pool.map(file_content, files.values()), strict=True))


def content(source: str | Path) -> str:
    """A hash of a file, of a folder, or of a Hub id's files in the Hub's cache; of the name if nothing is there."""
    path = Path(source)
    if path.is_file():
        return file_content(path)
    if not path.is_dir():
        cached = try_to_load_from_cache(str(source), "config.json") if str(source).count("/") == 1 else None
        if not isinstance(cached, str):
            return sha256([f"name {source}".encode()])
        path = Path(cached).parent
    entries = folder_contents(path).items()
    return sha256(f"{name} {value}\n".encode("utf-8", "surrogateescape") for name, value in entries)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a folder in order, also in linked subfolders."""
    found = [file.relative_to(folder) for file in walk(folder) if not file.name.endswith(IGNORED)]
    for file in sorted(found, key=lambda file: [*((1, name) for name in file.parts[:-1]), (0, file.name)]):
        yield file.as_posix(), folder / file


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _note(path: str) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewstep" / "contents"
    return root / f"{sha256([path.encode('utf-8', 'surrogateescape')])[:32]}.json"


def _read(path: str) -> tuple[list[int], str] | None:
    try:
        note = read_sealed_json(_note(path))
        return (note["stamp"], note["content"]) if note["path"] == path else None
    except (OSError, Damaged, KeyError):
        return None


def _write(path: str, stamp: list[int], found: str) -> None:
    note = _note(path)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_sealed_json(note, {"path": path, "stamp": stamp, "content": found}, concurrent=True)
    except OSError:  # a home that cannot be written: the file is hashed again by the next process
        return
