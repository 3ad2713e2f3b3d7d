"""The report's tables in HTML: every figure with its exact value beside it; rows become cards on a phone."""

import json
from html import escape
from typing import Any

from eval.report.columns import Column, columns, intervals
from eval.report.formats import NOTHING
from eval.report.markdown import spread
from eval.report.scatter import series_of


def name_of(name: str) -> str:
    """A name whose parts each stay on one line where they can."""
    parts = name.replace(", ", ",\n").split("\n")
    return " ".join(f'<span class="part">{escape(part)}</span>' for part in parts)


def _exact(value: Any) -> str:
    return escape(json.dumps(value, ensure_ascii=False))


def table(report: dict[str, Any], shown: list[Column]) -> str:
    """The columns `shown`, the row's name first, a line for each row of the report."""
    head = "".join(f'<th scope="col" class="{_kind(c)}">{escape(c.heading).replace("@", "<wbr>@")}</th>' for c in shown)
    colours, body = series_of(report["rows"]), []
    for i, row in enumerate(report["rows"]):
        dot = f'<i style="background:var(--series-{colours[row["method"]]})"></i>'
        name = f'data-row="{i}" data-key="name" data-value="{_exact(row["name"])}"'
        cells = [f'<th scope="row" {name}>{dot}{name_of(row["name"])}</th>']
        for c in shown[1:]:
            inner = figure(i, c.key, report)
            if c.key == "latency_ms":
                inner += f"<small>{spread(row)}</small>"
            if c.is_best(row):
                inner = f"<b>{inner}</b>"
            if c.interval is not None and row.get(c.interval.key) is not None:
                inner += f"<small>{figure(i, c.interval.key, report)}</small>"
            lacking = " lacking" if c.text(row[c.key]) == NOTHING else ""
            cells.append(f'<td class="{_kind(c)}{lacking}" data-label="{escape(c.heading)}">{inner}</td>')
        whose = "teacher" if row["method"] == "teacher" else "student"
        body.append(f'<tr class="{whose}">{"".join(cells)}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _kind(column: Column) -> str:
    return "words" if column.key == "training" else "figure"


def figure(index: int, key: str, report: dict[str, Any]) -> str:
    """One figure of row `index`, as text, with the exact value beside it."""
    shown = next(column for column in (*columns(report), *intervals(report)) if column.key == key)
    value = report["rows"][index][key]
    return f'<span data-row="{index}" data-key="{key}" data-value="{_exact(value)}">{escape(shown.text(value))}</span>'
