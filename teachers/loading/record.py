"""`distill.json`, the record of an exported pipeline: its calls, its origin, and the SHA-256 of its files."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from teachers.loading.contents import changed_files
from teachers.support.checksums import Damaged, read_sealed_json, write_sealed_json
from teachers.support.contents import folder_contents

RECORD = "distill.json"
ADVICE = f'export the pipeline again (if the change is intended, remove "files" and "sha256" from {RECORD})'


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of the pipeline in `folder`, whose files, apart from its model card, must be complete."""
    write_sealed_json(folder / RECORD, {**record, "files": folder_contents(folder)})


def read_record(folder: Path, complete: bool = False) -> dict[str, Any]:
    """The record of the pipeline in `folder`, after verifying it and the files that it lists.

    A record without checksums is taken as its author's own.

    Args:
        folder: The pipeline's folder.
        complete: Whether every file must be there; a download from the Hub can leave out some.

    Raises:
        FileNotFoundError: If there is no record.
        ValueError: If the record or a file has changed since the export.
    """
    try:
        record = read_sealed_json(folder / RECORD, required=False)
    except Damaged as error:
        raise ValueError(f"{error}; {ADVICE}") from error
    files = record.get("files") or {}
    if not isinstance(files, dict):
        raise ValueError(f'"files" in {folder / RECORD} must be a mapping, got {type(files).__name__}; {ADVICE}')
    inside = {name: value for name, value in files.items() if _is_inside(name)}
    if not complete:
        inside = {name: value for name, value in inside.items() if (folder / name).is_file()}
    for name in changed_files(folder, inside):
        raise ValueError(f"{folder / name} is not the file that {RECORD} lists; {ADVICE}")
    return record


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
