"""The report as GitHub Markdown, and a summary table as plain text for the terminal."""

from collections.abc import Callable
from typing import Any

from eval.report.columns import Column, columns, quality, speed
from eval.report.verdict import verdict_text
from teachers.support.text import cleaned, printable


def markdown(report: dict[str, Any]) -> str:
    """The text of report.md: tables, notes, images, and everything needed to reproduce the figures."""
    report = cleaned(report)
    machine = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in report["machine"].items())
    meanings = [f"- **{escape(column.heading)}**: {escape(column.help)}" for column in columns(report) if column.help]
    return "\n".join(
        [
            f"# {escape(title(report))}",
            "",
            escape(verdict_text(report)),
            "",
            *table(quality(report), report),
            "",
            *table(speed(report), report),
            "",
            *[f"> {escape(note)}\n" for note in report["notes"]],
            "![Samples: one column per row of the table, one line per prompt, the same noise in a line](grid.png)",
            "",
            *meanings,
            "",
            f"Measured {report['date']} on: {escape(machine)}.",
            "",
            "```",
            report["command"].replace("`", "'"),
            "```",
            "",
        ]
    )


def table(shown: list[Column], report: dict[str, Any]) -> list[str]:
    """The lines of a Markdown table.

    Args:
        shown: Its columns.
        report: The report, of which only `rows` is used.
    """
    head = "| " + " | ".join(escape(column.heading) for column in shown) + " |"
    rule = "| " + " | ".join("---" if column.key in ("name", "training") else "---:" for column in shown) + " |"
    return [head, rule, *("| " + " | ".join(_cell(c, row) for c in shown) + " |" for row in report["rows"])]


def _cell(column: Column, row: dict[str, Any]) -> str:
    """A figure and its interval in parentheses; bold if it is the best or tied with it."""
    text = escape(column.text(row[column.key]))
    if column.is_best(row):
        text = f"**{text}**"
    interval = column.interval_text(row)
    return text if interval is None else f"{text} ({escape(interval)})"


def title(report: dict[str, Any], written: Callable[[str], str] = str, most: int = 3, longest: int = 48) -> str:
    """The report's title: the names of the runs.

    Args:
        report: The report.
        written: Formats a name, for instance as HTML.
        most: Largest number of names that are written; the others are counted.
        longest: Longest name in characters; longer ones are cut.
    """
    names = list(dict.fromkeys(run["name"] for run in report["runs"]))
    shown = [written(name if len(name) <= longest else name[: longest - 1] + "…") for name in names[:most]]
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    listed = shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]
    if any(row["method"] == "teacher" for row in report["rows"]):
        return f"{listed} against the teacher"
    return f"Comparison of {listed}" if len(names) > 1 else f"{listed}: quality and speed"


def plain(report: dict[str, Any]) -> str:
    """The summary columns as a table of equal column widths, for the terminal."""
    report = cleaned(report)
    shown = [column for column in columns(report) if column.summary]
    cells = [[c.heading for c in shown]] + [[c.text(row[c.key]) for c in shown] for row in report["rows"]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    lines = [
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def escape(text: str) -> str:
    """Text without the characters that Markdown interprets: cell breaks, HTML, emphasis, links."""
    text = printable(text)
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, entity)
    for character in "\\|*_`[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
