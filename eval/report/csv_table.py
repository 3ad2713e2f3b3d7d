"""The report as report.csv: one line per row, every figure unrounded, every interval as two columns."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from eval.report.columns import columns
from teachers.support.text import printable

ALWAYS = ("name", "method", "num_steps", "solver", "seed", "samples")
FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "|",
    "%",
    "＝",
    "＋",
    "－",
    "＠",
)  # a spreadsheet would evaluate text that begins with one of these


def csv_table(report: dict[str, Any]) -> str:
    """The text of report.csv.

    The columns are those of the report's tables, by their keys in report.json. The interval of the figure KEY is in
    KEY_low and KEY_high (if any row has it), throughput at batch size N in images_per_second_at_N. Unknown values are
    empty.
    """
    lines = [dict(_cells(row, report)) for row in report["rows"]]
    headings = list(dict.fromkeys(key for line in lines for key in line))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, headings, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _cells(row: dict[str, Any], report: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in ALWAYS:
        yield key, plain_cell(row.get(key))
    for column in columns(report):
        value = row.get(column.key)
        if column.key == "training":
            for part in ("steps", "seconds", "device"):
                yield f"training_{part}", plain_cell((value or {}).get(part))
        elif column.key == "throughput":
            for entry in value or []:
                yield f"images_per_second_at_{entry['batch_size']}", entry["images_per_second"]
        elif column.key not in ALWAYS:
            yield column.key, plain_cell(value)
        if column.key == "latency_ms":
            yield from (("latency_ms_p5", row["latency_ms_p5"]), ("latency_ms_p95", row["latency_ms_p95"]))
        if column.interval is not None and any(each.get(column.interval.key) for each in report["rows"]):
            low, high = row.get(column.interval.key) or (None, None)
            yield from ((f"{column.key}_low", low), (f"{column.key}_high", high))


def plain_cell(value: Any) -> Any:
    """Text that a spreadsheet does not evaluate; numbers are unchanged."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text
