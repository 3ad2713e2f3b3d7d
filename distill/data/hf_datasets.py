"""Captioned images through the `datasets` library: parquet files, webdataset shards (.tar), data sets on the hub.

    pip install -e ".[data]"

As data only: no code of theirs is run, and no path that they name is opened. With `streaming` they are read once from
front to back, and no copy of them is made.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from distill.data.images import Block, Images, Row
from distill.data.shards import digest
from teachers.loading.prompts import COLUMNS, MISSING, cell, choose_column, import_optional

TABLES = {".parquet": "parquet", ".tar": "webdataset"}  # endings, and the builders of `datasets` that read them
UNDECLARED = ("image", "img", "jpg", "jpeg", "png", "webp")  # columns of images in tables that do not say so


class DataSet(Images):
    """What `datasets` reads: .parquet or .tar files, or the training split of a data set on the hub.

    `column` holds the captions, by default the first of those that prompts are looked for in, or a .txt of a tar.
    Raises ValueError, one sentence, where it cannot be opened or lacks a column of images or of captions.
    """

    def __init__(self, source: str, captioned: bool, column: str | None, streaming: bool, limit: int) -> None:
        library = import_optional("datasets", f"reading {source}")
        files = _files(source)
        self.source, self.limit, self.streaming = source, limit, streaming
        revision = None if files else _revision(source)
        with explained(source):
            kind = TABLES[files[0].suffix.lower()] if files else source
            asked: dict[str, Any] = {"data_files": list(map(str, files))} if files else {"revision": revision}
            data = library.load_dataset(kind, split="train", streaming=streaming, **asked)
            features = data.features or dict.fromkeys(next(iter(data)))
            self.image = _image_column(source, features, library.Image)
            self.caption = _caption_column(source, features, column) if captioned else None
            data = data.cast_column(self.image, library.Image(decode=False))
        self._root = self.caption if self.caption in features else (self.caption or "").partition(".")[0]
        self.data = data.select_columns([self.image, *([self._root] if self._root else [])])
        many = None if streaming else len(data)
        stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        where = digest(stamps) if files else digest(source, revision)
        self._rows_of = digest(where, self.image, self.caption, many)
        self.mark = digest(self._rows_of, limit)
        self.contents = [self.image, self.caption, limit, [_ends(file) for file in files] or [source, many]]

    def blocks(self, size: int) -> Iterator[Block]:
        if self.streaming:
            rows, first = self._rows(islice(self.data, self.limit or None)), 0
            while read := list(islice(rows, size)):
                yield Block(digest(self._rows_of, first, first + len(read)), read.copy)
                first += len(read)
            return
        count = min(len(self.data), self.limit or len(self.data))
        for first in range(0, count, size):
            last = min(first + size, count)
            yield Block(digest(self._rows_of, first, last), partial(self._read, first, last))

    def captions(self) -> Iterator[str | None]:
        words = self.data.select_columns([self._root or self.image])
        return (self._words(record) for record in islice(words, self.limit or None))

    def _read(self, first: int, last: int) -> list[Row]:
        return list(self._rows((self.data[i] for i in range(first, last)), first))

    def _rows(self, records: Iterator[dict[str, Any]], first: int = 0) -> Iterator[Row]:
        with explained(self.source):
            for number, record in enumerate(records, start=first):
                image = record[self.image] or {}
                yield Row(f"row {number} of {self.source}", self._words(record), image.get("bytes"))

    def _words(self, record: dict[str, Any]) -> str | None:
        words = None if self.caption is None else cell(record, self.caption)
        return None if words is None or words is MISSING else str(words).strip()


def is_data_set(source: str) -> bool:
    """Whether `source` is for `DataSet`: files by their ending (a pattern too), a folder of such, or a hub's name."""
    place = Path(source)
    named = source.count("/") == 1 and not source.startswith((".", "/", "~")) and not place.exists()
    return bool(place.suffix.lower() in TABLES or _files(source) or (named and all(source.split("/"))))


def _files(source: str) -> list[Path]:
    place = Path(source)
    if place.is_dir():
        return sorted(file for file in place.iterdir() if file.suffix.lower() in TABLES)
    if place.suffix.lower() not in TABLES:
        return []
    found = [place] if place.is_file() else sorted(place.parent.glob(place.name)) if place.name else []
    if not found:
        raise ValueError(f"there is no file of images {source}")
    return found


def _image_column(source: str, features: Any, kind: type) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    found += [name for name in UNDECLARED if name in features]
    if not found:
        raise ValueError(f"{source} has no column of images; its columns are {', '.join(features)}")
    return "image" if "image" in found else found[0]


def _caption_column(source: str, features: Any, column: str | None) -> str:
    known = [name for name in features if not name.startswith("__")]
    if column is None:
        return "txt" if "txt" in known and not set(known) & set(COLUMNS) else choose_column(source, known)
    if column.partition(".")[0] not in known and column not in known:
        raise ValueError(f"{source} has no column {column!r} (data.column); its columns are {', '.join(known)}")
    return column


def _revision(name: str) -> str | None:
    """The newest commit of a data set on the hub; None where it cannot be asked, and a copy on this machine must do."""
    try:
        return HfApi().dataset_info(name).sha
    except Exception:  # the client raises whatever its many layers do; what is fatal, loading will tell
        return None


def _ends(file: Path, size: int = 2**16) -> tuple[int, str]:
    """What tells a large file from another: its length, its beginning and its end (of parquet, the statistics)."""
    length = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(size)
        stream.seek(max(0, length - size))
        return length, digest(first, stream.read())


@contextmanager
def explained(source: str) -> Iterator[None]:
    """The many failures of `datasets` as a ValueError of one sentence."""
    try:
        yield
    except Exception as error:
        chain: list[BaseException] = [error]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        names, words = {type(link).__name__ for link in chain}, " ".join(" ".join(map(str, chain)).split())
        if "DatasetNotFoundError" in names:
            raise ValueError(
                f"there is no folder {source}, and the hub has no such data set, or it is private or gated: check the "
                "spelling, or log in (hf auth login)"
            ) from error
        if not _files(source) and (any(isinstance(e, ConnectionError) for e in chain) or "connect" in words.lower()):
            raise ValueError(f"there is no folder {source}, and the hub cannot be reached for a data set") from error
        if type(error) is ValueError and len(chain) == 1:
            raise  # a sentence of our own
        raise ValueError(f"the data set {source} cannot be read: {words[:200]}") from error
