"""Captioned images, clips or sounds through the `datasets` library.

It reads parquet files, webdataset shards (.tar) and datasets on the Hub.

    pip install -e ".[data]"

Datasets are read as data only: no code of a dataset is executed, and no path that it contains is opened. With
`streaming` a dataset is read once from front to back, without a local copy.
"""

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from distill.data.archives import check_archive
from distill.data.images import Block, Images, Row
from distill.data.splits import training_files
from teachers.loading.prompts import COLUMNS, MISSING, cell, check_text, choose_column, import_optional
from teachers.loading.sources import IMAGES, MASKS, PROMPTS, TARGETS, choose
from teachers.media import Image, Medium
from teachers.support.errors import is_sentence
from teachers.support.keys import file_content, key
from teachers.support.listing import list_files, visible
from teachers.support.text import agree, counted, first_names, one_line, printable

BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}  # the builder of `datasets` for each file extension
FEATURES = {"image": "Image", "video": "Video", "audio": "Audio"}  # the type of a column in `datasets` by medium
NAMES = {  # names of columns in tables without column types
    "image": ("image", "img", "jpg", "jpeg", "png", "webp"),
    "video": ("video", "clip", "mp4", "webm", "mov", "mkv", "avi", "webp", "gif"),
    "audio": ("audio", "sound", "wav", "flac", "mp3", "ogg", "opus", "m4a"),
}


class HFImages(Images):
    """Samples of one medium in .parquet or .tar files, or in the training split of a dataset on the Hub.

    Args:
        source: A file, a pattern of files, a folder of files, or a dataset's name on the Hub.
        captioned: Whether captions are needed.
        column: The column of captions; by default the first of `teachers.loading.prompts.COLUMNS` that exists, or the
            .txt files of a .tar.
        streaming: Read the dataset once, without a local copy.
        limit: Number of rows that are used, from the first; 0: all.
        medium: The medium.
        source_columns: For teachers with source images: whether they take masks, and whether the edited image, the
            sample, is needed. None for other teachers.

    Raises:
        ValueError: If the dataset cannot be opened, or has no column of such samples or of captions.
    """

    def __init__(
        self,
        source: str,
        captioned: bool,
        column: str | None,
        streaming: bool,
        limit: int,
        medium: type[Medium] = Image,
        source_columns: tuple[bool, bool] | None = None,
    ) -> None:
        library = import_optional("datasets", f"reading {source}")
        files, self.notes = _training_split(source, _files(source, medium))
        for file in files:
            check_archive(file)
        self.source, self.limit, self.streaming, self.medium = source, limit, streaming, medium
        revision = None if files else _revision(source)
        with readable_errors(source, medium):
            kind = BUILDERS[files[0].suffix.lower()] if files else source
            contents = [file_content(file) for file in files]  # of regular files only
            # `datasets` identifies local files by their modification times, so its cache gets a name by content.
            local: dict[str, Any] = {
                "data_files": [glob.escape(str(file)) for file in files],
                "name": key(contents)[:32],
            }
            selection: dict[str, Any] = local if files else {"revision": revision}
            data = library.load_dataset(kind, split="train", streaming=streaming, trust_remote_code=False, **selection)
            features = data.features or dict.fromkeys(next(iter(data)))
            column_type = getattr(library, FEATURES[medium.name])
            self.sample: str | None
            self.sources: tuple[str | None, str | None] = (None, None)
            if source_columns is None:
                self.sample = _sample_column(source, features, column_type, medium)
            else:
                self.sample, self.sources = _source_columns(source, features, *source_columns)
            names = COLUMNS if source_columns is None else PROMPTS
            self.caption = _caption_column(source, features, column, names) if captioned else None
            media = list(dict.fromkeys(name for name in (self.sample, *self.sources) if name is not None))
            for name in media:
                data = data.cast_column(name, column_type(decode=False))
        self._root = self.caption if self.caption in features else (self.caption or "").partition(".")[0]
        self.data = data.select_columns([*media, *([self._root] if self._root else [])])
        length = None if streaming else len(data)
        stored = [] if streaming else [file_content(Path(file["filename"])) for file in data.cache_files]
        origin = contents or stored or (source, revision)  # a dataset on the Hub: its copy, if there is one
        columns = (self.sample, *self.sources) if source_columns is not None else self.sample
        self._source_key = key(origin, columns, self.caption, length)
        self.content_key = key(self._source_key, limit)

    def blocks(self, size: int) -> Iterator[Block]:
        if self.streaming:
            rows, first = self._rows(islice(self.data, self.limit or None)), 0
            while read := list(islice(rows, size)):
                yield Block(key(self._source_key, first, first + len(read)), read.copy)
                first += len(read)
            return
        count = min(len(self.data), self.limit or len(self.data))
        for first in range(0, count, size):
            last = min(first + size, count)
            yield Block(key(self._source_key, first, last), partial(self._read, first, last))

    def captions(self) -> Iterator[str | None]:
        records = self.data.select_columns([self._root or self.sample or self.sources[0]])
        return (self._caption(record, number) for number, record in enumerate(islice(records, self.limit or None)))

    def _read(self, first: int, last: int) -> list[Row]:
        return list(self._rows((self.data[i] for i in range(first, last)), first))

    def _rows(self, records: Iterator[dict[str, Any]], first: int = 0) -> Iterator[Row]:
        with readable_errors(self.source, self.medium):
            for number, record in enumerate(records, start=first):
                sample, image, mask = (_bytes(record, column) for column in (self.sample, *self.sources))
                yield Row(f"row {number} of {self.source}", self._caption(record, number), sample, (image, mask))

    def _caption(self, record: dict[str, Any], number: int) -> str | None:
        caption = None if self.caption is None else cell(record, self.caption)
        return None if caption is MISSING else check_text(caption, f"row {number} of {self.source}")


def _bytes(record: dict[str, Any], column: str | None) -> bytes | None:
    found: bytes | None = None if column is None else (record[column] or {}).get("bytes")
    return found


def _source_columns(
    source: str, features: Any, masked: bool, targets: bool
) -> tuple[str | None, tuple[str | None, str | None]]:
    """The columns of the edited image, if it is needed, and of the source image and its mask."""
    target, image = choose(TARGETS, features), choose(IMAGES, features)
    image = target if image is None and masked else image
    for name, found, known in (("source", image, IMAGES), ("edited", target or not targets, TARGETS)):
        if not found:
            raise ValueError(
                f"{source} must have a column of {name} images ({', '.join(known[:3])}); its columns are "
                f"{', '.join(map(printable, features))}"
            )
    return (target if targets else None), (image, choose(MASKS, features) if masked else None)


def is_hf_source(source: str, medium: type[Medium] = Image) -> bool:
    """Whether `HFImages` reads `source`: a file or pattern with a known extension, a folder of them, or a Hub name."""
    path = Path(source)
    is_name = source.count("/") == 1 and not source.startswith((".", "/", "~")) and not path.exists()
    is_file = path.suffix.lower() in BUILDERS and not path.is_dir()
    return bool(is_file or _files(source, medium) or (is_name and all(source.split("/"))))


def _files(source: str, medium: type[Medium]) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        files = [file for file in path.iterdir() if not file.name.startswith(".")]
        tables = sorted(file for file in files if file.suffix.lower() in BUILDERS)
        if [table.name for table in tables] == ["metadata.parquet"] and any(map(medium.lists, list_files(path))):
            return []  # captions of the files in the folder
        if tables and any(map(medium.lists, files)):
            samples = medium.plural
            raise ValueError(
                f"the folder {source} must hold {samples} or {' or '.join(BUILDERS)} files, but has {samples} and "
                f"{printable(tables[0].name)}; move one kind elsewhere (captions of {samples} are read from "
                "metadata.jsonl, metadata.csv, metadata.parquet or .txt files)"
            )
        return tables
    if path.suffix.lower() not in BUILDERS:
        return []
    files = [path] if path.is_file() else visible(path.parent, path.name) if path.name else []
    if not files:
        raise ValueError(f"the file of {medium.plural} {source} does not exist")
    return files


def _training_split(source: str, files: list[Path]) -> tuple[list[Path], list[str]]:
    """The files of a folder or pattern that are for training, and what to say about the others."""
    used = training_files(files)
    if len(files) < 2 or len(used) == len(files):
        return files, []
    others = [file for file in files if file not in used]
    if not used:
        if not Path(source).is_dir():
            return files, []  # a pattern such as test-*.parquet: what it names is meant
        raise ValueError(
            f"{source} must have files for training, but {first_names(others)} are for other splits by their names; "
            "give a pattern, such as test-*.parquet, to train on them"
        )
    return used, [
        f"{counted(len(others), 'file')} of {source} {agree(len(others), 'are not used (not for training)')}: "
        f"{first_names(others)}"
    ]


def _sample_column(source: str, features: Any, kind: type, medium: type[Medium]) -> str:
    columns = [name for name, feature in features.items() if isinstance(feature, kind)]
    columns += [name for name in NAMES[medium.name] if name in features]
    if not columns:
        raise ValueError(
            f"{source} must have a column of {medium.plural}; its columns are {', '.join(map(printable, features))}"
        )
    return medium.name if medium.name in columns else columns[0]


def _caption_column(source: str, features: Any, column: str | None, names: Sequence[str] = COLUMNS) -> str:
    known = [name for name in features if not name.startswith("__")]
    if column is None:
        return "txt" if "txt" in known and not set(known) & set(names) else choose_column(source, known, names)
    if column.partition(".")[0] not in known and column not in known:
        raise ValueError(
            f"data.column must be a column of {source} ({', '.join(map(printable, known))}), got {column!r}"
        )
    return column


def _revision(name: str) -> str | None:
    """The newest commit of a dataset on the Hub, or None if the Hub cannot be reached; a local copy is then used."""
    try:
        return HfApi().dataset_info(name).sha
    except Exception:  # the client raises many types; a fatal problem is reported when the dataset is loaded
        return None


@contextmanager
def readable_errors(source: str, medium: type[Medium]) -> Iterator[None]:
    """A context that converts the errors of `datasets` to a ValueError with one sentence."""
    try:
        yield
    except Exception as error:
        chain: list[BaseException] = [error]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        names, text = {type(link).__name__ for link in chain}, " ".join(" ".join(map(str, chain)).split())
        if "torchcodec" in text:  # `datasets` needs it for the sounds of .tar files, although they are not decoded
            raise ValueError(
                f"reading the {medium.plural} of {source} needs the package torchcodec: pip install torchcodec; "
                "a folder or .parquet files do not need it"
            ) from error
        if "DatasetNotFoundError" in names:
            raise ValueError(
                f"data.images {source} is neither a folder nor a public dataset on the Hub: check the spelling, or "
                "log in (hf auth login) if the dataset is private or gated"
            ) from error
        if not _files(source, medium) and (
            any(isinstance(e, ConnectionError) for e in chain) or "connect" in text.lower()
        ):
            raise ValueError(
                f"data.images {source} is not a folder, and the Hub cannot be reached to look for a dataset"
            ) from error
        if is_sentence(error):
            raise
        raise ValueError(f"the dataset {source} cannot be read: {one_line(text)}") from error
