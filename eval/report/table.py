"""The report's tables as plain values: the text of every figure together with its exact value."""

import json
from dataclasses import dataclass
from typing import Any

from eval.report.columns import Column, columns, intervals
from eval.report.formats import NOTHING, spread
from eval.report.series import series_of


@dataclass(frozen=True)
class FigureText:
    """An entry of a row of report.json: its exact value as JSON, and the text that shows it."""

    row: int
    key: str
    value: str
    text: str


@dataclass(frozen=True)
class Cell:
    """A figure in a table, with the small print below it: a text, or another figure."""

    figure: FigureText
    heading: str
    prose: bool
    missing: bool
    bold: bool
    small_text: str
    small_figure: FigureText | None


@dataclass(frozen=True)
class TableRow:
    """A row of a table, headed by the row's name in the report."""

    name: FigureText
    series: int
    is_teacher: bool
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """Column headings, each with whether the column contains prose, and rows."""

    headings: list[tuple[str, bool]]
    rows: list[TableRow]


def figure(index: int, key: str, report: dict[str, Any]) -> FigureText:
    """The entry `key` of row `index`."""
    column = next(column for column in (*columns(report), *intervals(report)) if column.key == key)
    value = report["rows"][index][key]
    return FigureText(index, key, json.dumps(value, ensure_ascii=False), column.text(value))


def table(report: dict[str, Any], shown: list[Column]) -> Table:
    """A table of the columns `shown`, the first of which is the row's name, with every row of the report."""
    series, rows = series_of(report["rows"]), []
    for i, row in enumerate(report["rows"]):
        cells = [_cell(i, column, report) for column in shown[1:]]
        name = FigureText(i, "name", json.dumps(row["name"], ensure_ascii=False), row["name"])
        rows.append(TableRow(name, series[row["method"]], row["method"] == "teacher", cells))
    return Table([(column.heading, _is_prose(column)) for column in shown], rows)


def _cell(index: int, column: Column, report: dict[str, Any]) -> Cell:
    row, interval = report["rows"][index], column.interval
    return Cell(
        figure=figure(index, column.key, report),
        heading=column.heading,
        prose=_is_prose(column),
        missing=column.text(row[column.key]) == NOTHING,
        bold=column.is_best(row),
        small_text=spread(row) if column.key == "latency_ms" else "",
        small_figure=None if interval is None or row.get(interval.key) is None else figure(index, interval.key, report),
    )


def _is_prose(column: Column) -> bool:
    return column.key == "training"
