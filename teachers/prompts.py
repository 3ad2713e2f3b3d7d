"""Prompts from where a recipe or a command says they are, read in one way for training and for judging."""

import csv
import json
from pathlib import Path
from typing import Any

from teachers import pocket

KEYS = ("prompt", "caption", "text")  # what a column or an entry with prompts may be called


def read_prompts(source: str) -> list[str]:
    """The prompts of `source`: "pocket" (the pocket teacher's own) or a UTF-8 file, in order, blanks dropped.

    A text file has one prompt a line; a .csv or .tsv has a heading, and a .jsonl one object a line, with the prompts
    under "prompt", "caption" or "text". Raises ValueError, one sentence, where the file is missing, is not UTF-8, is
    not what its ending says, or holds no prompts.
    """
    if source == "pocket":
        return pocket.balanced_prompts(160)  # all phrasings of all classes; it repeats from there
    file = Path(source)
    if not file.is_file():
        raise ValueError(
            f"there is no file of prompts {source}; give a text file with one prompt a line, a .csv or a .jsonl"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text; save the prompts as UTF-8, one a line") from error
    kind = file.suffix.lower()
    if kind in (".csv", ".tsv"):
        lines = _column(text, source, "\t" if kind == ".tsv" else ",")
    else:
        lines = _objects(text, source) if kind == ".jsonl" else text.splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{source} holds no prompts; write one a line")
    return prompts


def _column(text: str, source: str, delimiter: str) -> list[str]:
    rows = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter)
    try:
        key = next((k for k in KEYS if k in (rows.fieldnames or ())), None)
        if key is None:
            raise ValueError(f"{source} has no column called {' or '.join(KEYS)}; name one so in its first line")
        return [" ".join((row[key] or "").split()) for row in rows]
    except csv.Error as error:
        raise ValueError(f"{source} is not readable as a table ({error}); save it again") from error


def _objects(text: str, source: str) -> list[str]:
    out = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry: Any = json.loads(line)
        except json.JSONDecodeError:
            entry = None
        found = [entry[k] for k in KEYS if isinstance(entry.get(k), str)] if isinstance(entry, dict) else []
        if not found:
            raise ValueError(
                f"line {number} of {source} is no object with a text under {' or '.join(KEYS)}, such as "
                '{"caption": "a bag"}; mend the line'
            )
        out.append(" ".join(found[0].split()))
    return out
