"""The logs of a run, one JSON record in each line: `history.jsonl` and `log.jsonl`."""

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from teachers.support.checksums import Damaged, seal, unseal
from teachers.support.files import atomic_write
from teachers.support.regular import append_line, read_bytes


@contextmanager
def warn_if_unwritable(what: str) -> Iterator[None]:
    """Replace an OSError of the block, such as that of a full disk, by a warning that `what` is lost."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{what} could not be written ({error})", stacklevel=3)


class JsonlLog:
    """A log file with one JSON record, with the key `step`, in each line. Each record has a checksum.

    Args:
        path: The file.
        start: The step that the run resumes from. Later records, which an interrupted run wrote after its last
            checkpoint, an incomplete last line, damaged records, with a warning, and those of other runs are removed.
        run: The run's key, from `run_key`; records have it as "run".

    Attributes:
        last: The step of the last record; -1 if there is none.
    """

    def __init__(self, path: Path, start: int, run: str = "") -> None:
        self.path, self.run = path, run
        self.last: float = -1
        if not path.is_file():
            return
        lines = _lines(path)
        records = [_record(line, run) for line in lines]
        if any(record is None for record in records[:-1]):
            warnings.warn(f"damaged records of {path} are removed", stacklevel=2)
        kept = [(line, r["step"]) for line, r in zip(lines, records, strict=True) if r and start and r["step"] <= start]
        self.last = max((step for _, step in kept), default=-1)
        if len(kept) < len(lines) or path.stat().st_nlink > 1:  # appending to a hard link would change a backup, too
            try:
                with atomic_write(path) as temporary:
                    temporary.write_text("".join(f"{line}\n" for line, _ in kept), encoding="utf-8")
            except OSError as error:
                self._warn("later records could not be removed from", error)

    def append(self, record: dict[str, Any]) -> None:
        """Append `record`. Non-finite numbers become null.

        If the file cannot be written (a full disk, a file system that became read-only), the record is lost with a
        warning.
        """
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        line = json.dumps(seal({**finite, "run": self.run}))
        try:
            append_line(self.path, line)
        except OSError as error:
            self._warn("a record could not be written to", error)
        self.last = record["step"]

    def _warn(self, what: str, error: OSError) -> None:
        warnings.warn(f"{what} {self.path} ({error.strerror or error})", stacklevel=3)


def held_out_records(path: Path, run: str) -> list[dict[str, Any]]:
    """The valid records of the run with the key `run` in `history.jsonl`, in order; [] if there is no such file."""
    return [record for record in (_record(line, run) for line in _lines(path)) if record is not None]


def _lines(path: Path) -> list[str]:
    """The lines of a log, which end with "\\n" only."""
    text = read_bytes(path).decode("utf-8", errors="replace") if path.is_file() else ""
    return text.removesuffix("\n").split("\n") if text else []


def _record(line: str, run: str) -> dict[str, Any] | None:
    """The record in a line; None if it is incomplete, damaged or of another run."""
    try:
        record = unseal(line, "a record")
    except Damaged:
        return None
    return record if record.get("run") == run and isinstance(record.get("step"), int | float) else None
