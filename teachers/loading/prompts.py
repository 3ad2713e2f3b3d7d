"""Prompts from where a recipe or a command says they are, read in one way for training and for judging.

A source is "pocket" (the pocket teacher's own), a text file with one prompt a line, or a table: .jsonl, .csv, .tsv or
.parquet (which needs pyarrow: `pip install -e ".[data]"`). Of a table one column is read: the one that is asked for, or
the first of COLUMNS that it has.
"""

import csv
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from teachers import pocket

COLUMNS = ("text", "prompt", "caption")
EXTRA = 'pip install -e ".[data]"'


def read_prompts(source: str, column: str | None = None) -> list[str]:
    """The prompts of `source`, blanks dropped. `column` names that of a table, with dots into nested ones.

    Raises ValueError, one sentence, where the file is missing, cannot be read, has no such column or holds no prompts.
    """
    if source == "pocket":
        return pocket.balanced_prompts(160)  # all phrasings of all classes; it repeats from there
    file = Path(source)
    if not file.is_file():
        raise ValueError(f"there is no file of prompts {source}; give a text file with one prompt a line, or a table")
    reader = READERS.get(file.suffix.lower())
    if reader is None and column is not None:
        raise ValueError(f"{source} is a text file with one prompt a line: it has no column {column!r} (data.column)")
    try:
        words = (
            file.read_text(encoding="utf-8-sig").splitlines() if reader is None else table(source, reader(file), column)
        )
        prompts = [" ".join(word.split()) for word in words if word.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text; save the prompts as UTF-8, one a line") from error
    if not prompts:
        raise ValueError(f"{source} holds no prompts; write one a line")
    return prompts


def table(source: str, rows: Iterable[Mapping[str, Any]], column: str | None) -> Iterator[str]:
    """The words of one column, row by row; rows without any are left out."""
    for row in rows:
        column = column or choose(source, row)
        word = value(row, column)
        if word is MISSING:
            raise ValueError(f"{source} has no column {column!r}; its columns are {', '.join(map(str, row))}")
        if word is not None:
            yield str(word)


def choose(source: str, columns: Iterable[str]) -> str:
    """The first of COLUMNS among `columns`; ValueError that lists them where there is none."""
    known = list(columns)
    for name in COLUMNS:
        if name in known:
            return name
    raise ValueError(
        f"{source} has no column called {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}; its columns are "
        f"{', '.join(map(str, known))}: rename the one with the words, or in a recipe name it with data.column=..."
    )


MISSING = object()


def value(row: Mapping[str, Any], column: str) -> Any:
    """What `row` has under `column`, where "json.caption" is the caption within json; MISSING where there is none."""
    if column in row:
        return row[column]
    outer, dot, inner = column.partition(".")
    within = row.get(outer) if dot else None
    return value(within, inner) if isinstance(within, Mapping) else MISSING


def imported(module: str, purpose: str) -> Any:
    """An optional module, or a ValueError that says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{purpose} needs the package {module.partition('.')[0]}: {EXTRA}") from error


def _jsonl(file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}: this is not JSON") from error
        if not isinstance(row, dict):
            raise ValueError(f'{file}, line {number}: every line has to read {{"text": ...}}')
        yield row


def _csv(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            yield from csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
    except csv.Error as error:
        raise ValueError(f"{file} is not readable as a table ({error})") from error


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    parquet = imported("pyarrow.parquet", f"reading {file}")
    try:
        with parquet.ParquetFile(file) as stored:
            for batch in stored.iter_batches(columns=_words(stored.schema_arrow)):
                yield from batch.to_pylist()
    except (OSError, imported("pyarrow", f"reading {file}").ArrowException) as error:
        raise ValueError(f"{file} is not readable as parquet ({' '.join(str(error).split())})") from error


def _words(schema: Any) -> list[str]:
    """All columns but those that hold bytes: a table of images is large."""
    return [field.name for field in schema if "binary" not in str(field.type)]


READERS = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
