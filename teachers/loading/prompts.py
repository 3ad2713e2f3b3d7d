"""Reading prompts, for training and evaluation.

A source is an embedded teacher ("pocket", "pocket-video" or "pocket-audio": its prompts), a text file with one prompt
per line, or a table: .jsonl, .csv, .tsv or .parquet (which needs pyarrow: `pip install -e ".[data]"`). One column of a
table is read: the requested one, or the first of COLUMNS that it has. Files are UTF-8, and only line feeds and carriage
returns end lines.
"""

import csv
import importlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from teachers.loading.embedded import EMBEDDED
from teachers.support.errors import reads
from teachers.support.json_files import parse_json
from teachers.support.regular import check_regular
from teachers.support.text import printable, read_lines, read_text

COLUMNS = ("text", "prompt", "caption")
# Tables of the samples in their folder, as for HF's ImageFolder, VideoFolder and AudioFolder.
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
LONGEST = 20_000  # characters of a caption; text encoders read the first 77 to 512 tokens
PARQUET_ROWS = 256  # read at a time: a long value that is stored once can stand in many rows
EXTRA = 'pip install -e ".[data]"'


@reads
def read_prompts(source: str, column: str | None = None) -> list[str]:
    """Read the prompts of a source.

    Args:
        source: The name of an embedded teacher, such as "pocket", or a file.
        column: The column of a table; dots select nested values, as in "json.caption".

    Returns:
        The prompts that are not blank, with single spaces.

    Raises:
        ValueError: If the file is missing or unreadable, has no such column or contains no prompts.
    """
    if source in EMBEDDED:
        return EMBEDDED[source].prompts()
    file = Path(source)
    if not file.exists():
        raise ValueError(f"there is no file of prompts {source}; give a text file with one prompt per line, or a table")
    check_regular(file)  # also for readers of other libraries
    if file.suffix.lower() in (".json", ".yaml", ".yml"):
        raise ValueError(f"{source} must be a text file with one prompt per line, or a table ({', '.join(READERS)})")
    reader = READERS.get(file.suffix.lower())
    if reader is None and column is not None:
        raise ValueError(
            f"{source} is a text file with one prompt per line, so data.column must be null, got {column!r}"
        )
    texts: Iterable[str]
    if reader is None:
        texts = (
            check_text(line, f"{source}, line {number}") or "" for number, line in enumerate(read_lines(file), start=1)
        )
    else:
        texts = column_values(source, reader(file), column)
    prompts = [" ".join(text.split()) for text in texts if text.strip()]
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
            raise ValueError(f"{source} has no column {column!r}; its columns are {', '.join(map(printable, row))}")
        text = check_text(found, f"{source}, the value {str(found)[:40]!r}")
        if text is not None:
            yield text


def check_text(value: Any, where: str) -> str | None:
    """A prompt or caption as text, without a byte-order mark and outer blanks.

    Args:
        value: A stored value: text, a number (such as a class), or None or NaN, which tables store for no value.
        where: What to name in error messages.

    Returns:
        The text; None for no value.

    Raises:
        ValueError: If it is a list or another type, or text that cannot be encoded.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        found = type(value).__name__
        if isinstance(value, list | tuple):
            found = f"a list of {len(value)}"
        elif isinstance(value, Mapping):
            found = f"a group ({', '.join(map(str, value))})"
        raise ValueError(f"{where}: a prompt or caption must be one text, got {found}; write one of them")
    text = str(value).removeprefix("\ufeff").strip()
    if len(text) > LONGEST:
        raise ValueError(f"{where}: a prompt or caption must have at most {LONGEST:,} characters, got {len(text):,}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{where}: {printable(text[:40])!r} contains half of a surrogate pair; save it as UTF-8")
    return text


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a .jsonl, .csv, .tsv or .parquet file, each with the number of its line or row.

    Raises:
        ValueError: If the file is not a table; the message names the file and the line.
    """
    if file.suffix.lower() == ".parquet":
        return enumerate(_parquet(file), start=1)
    return _jsonl(file) if file.suffix.lower() in (".jsonl", ".ndjson") else _csv(file)


def choose_column(source: str, columns: Iterable[str], names: Sequence[str] = COLUMNS) -> str:
    """The first of `names` among `columns`.

    Raises:
        ValueError: If there is none; the message lists the columns of `source`.
    """
    known = list(columns)
    for name in names:
        if name in known:
            return name
    raise ValueError(
        f"{source} has no column called {', '.join(names[:-1])} or {names[-1]}; its columns are "
        f"{', '.join(map(printable, known))}: rename the column of captions, or select it with data.column=..."
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


def _jsonl(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, constants=True)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: this is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f'{file}, line {number}: every line must be a JSON object such as {{"text": ...}}')
        yield number, row


def _csv(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name for name in reader.fieldnames or () if name]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{file}, line 1: the column {printable(repeated)!r} is repeated; rename or remove one")
        for row in reader:
            if any(row.pop(None, None) or ()):  # csv's key for values beyond the last column
                raise ValueError(
                    f"{file}, line {reader.line_num}: more values than columns; quote texts that contain a comma"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: this is not readable as a table ({error})") from error


def _table(file: Path) -> Iterator[dict[str, Any]]:
    return (row for _, row in read_rows(file))


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    parquet = import_optional("pyarrow.parquet", f"reading {file}")
    try:
        with parquet.ParquetFile(file) as stored:
            for batch in stored.iter_batches(PARQUET_ROWS, columns=_text_columns(stored.schema_arrow)):
                yield from batch.to_pylist()
    except (OSError, import_optional("pyarrow", f"reading {file}").ArrowException) as error:
        raise ValueError(f"{file} is not readable as parquet ({' '.join(str(error).split())})") from error


def _text_columns(schema: Any) -> list[str]:
    """The columns without binary data: images would fill the memory."""
    return [field.name for field in schema if "binary" not in str(field.type)]


READERS = {".jsonl": _table, ".ndjson": _table, ".csv": _table, ".tsv": _table, ".parquet": _parquet}
