"""Reading prompts, for training and evaluation.

A source is "pocket" (the prompts of the pocket teacher), a text file with one prompt per line, or a table: .jsonl,
.csv, .tsv or .parquet (which needs pyarrow: `pip install -e ".[data]"`). One column of a table is read: the requested
one, or the first of COLUMNS that it has.
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
    """Read the prompts of a source.

    Args:
        source: "pocket" or a file.
        column: The column of a table; dots select nested values, as in "json.caption".

    Returns:
        The prompts that are not blank, with single spaces.

    Raises:
        ValueError: If the file is missing or unreadable, has no such column or contains no prompts.
    """
    if source == "pocket":
        return pocket.balanced_prompts(160)  # all captions of all classes; more would repeat them
    file = Path(source)
    if not file.is_file():
        raise ValueError(f"there is no file of prompts {source}; give a text file with one prompt per line, or a table")
    reader = READERS.get(file.suffix.lower())
    if reader is None and column is not None:
        raise ValueError(
            f"{source} is a text file with one prompt per line, so data.column must be null, got {column!r}"
        )
    try:
        texts = (
            file.read_text(encoding="utf-8-sig").splitlines()
            if reader is None
            else column_values(source, reader(file), column)
        )
        prompts = [" ".join(text.split()) for text in texts if text.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text; save the prompts as UTF-8, one per line") from error
    if not prompts:
        raise ValueError(f"{source} holds no prompts; write one per line")
    return prompts


def column_values(source: str, rows: Iterable[Mapping[str, Any]], column: str | None) -> Iterator[str]:
    """The values of one column as text, without empty ones.

    Args:
        source: The table's name in error messages.
        rows: The table's rows.
        column: The column; None for the first of COLUMNS that the table has.

    Yields:
        One text for each row that has a value.

    Raises:
        ValueError: If a row has no such column.
    """
    for row in rows:
        column = column or choose_column(source, row)
        found = cell(row, column)
        if found is MISSING:
            raise ValueError(f"{source} has no column {column!r}; its columns are {', '.join(map(str, row))}")
        if found is not None:
            yield str(found)


def choose_column(source: str, columns: Iterable[str]) -> str:
    """The first of COLUMNS among `columns`.

    Raises:
        ValueError: If there is none; the message lists the columns of `source`.
    """
    known = list(columns)
    for name in COLUMNS:
        if name in known:
            return name
    raise ValueError(
        f"{source} has no column called {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}; its columns are "
        f"{', '.join(map(str, known))}: rename the column of captions, or select it with data.column=..."
    )


MISSING = object()


def cell(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, where "json.caption" is the value "caption" of the column "json"; MISSING if none."""
    if column in row:
        return row[column]
    outer, dot, inner = column.partition(".")
    nested = row.get(outer) if dot else None
    return cell(nested, inner) if isinstance(nested, Mapping) else MISSING


def import_optional(module: str, purpose: str) -> Any:
    """Import a module of an optional dependency.

    Args:
        module: The module's full name.
        purpose: What needs it, for the error message.

    Returns:
        The module.

    Raises:
        ValueError: If it is not installed; the message says how to install it.
    """
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
            raise ValueError(f'{file}, line {number}: every line must be a JSON object such as {{"text": ...}}')
        yield row


def _csv(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            yield from csv.DictReader(stream, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
    except csv.Error as error:
        raise ValueError(f"{file} is not readable as a table ({error})") from error


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    parquet = import_optional("pyarrow.parquet", f"reading {file}")
    try:
        with parquet.ParquetFile(file) as stored:
            for batch in stored.iter_batches(columns=_text_columns(stored.schema_arrow)):
                yield from batch.to_pylist()
    except (OSError, import_optional("pyarrow", f"reading {file}").ArrowException) as error:
        raise ValueError(f"{file} is not readable as parquet ({' '.join(str(error).split())})") from error


def _text_columns(schema: Any) -> list[str]:
    """The columns without binary data: images would fill the memory."""
    return [field.name for field in schema if "binary" not in str(field.type)]


READERS = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
