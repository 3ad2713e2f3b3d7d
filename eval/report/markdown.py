"""The report as GitHub Markdown, and its table as plain text for the terminal."""

from collections.abc import Callable
from typing import Any

from eval.report.columns import BEST, DETAILS, Column, columns, quality, speed
from eval.report.formats import significant


def markdown(report: dict[str, Any]) -> str:
    """report.md: the table, the pictures, and everything needed to repeat the figures."""
    machine = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in report["machine"].items())
    meanings = [f"- **{_escape(column.heading)}**: {_escape(column.help)}" for column in columns(report) if column.help]
    return "\n".join(
        [
            f"# {_escape(title(report))}",
            "",
            *table(quality(report), report),
            "",
            *table(speed(report), report),
            "",
            *[f"> {_escape(note)}\n" for note in report["notes"]],
            "![Samples: one column a row of the table, one line a prompt, the same noise across](grid.png)",
            "",
            *meanings,
            "",
            f"Measured {report['date']} on: {_escape(machine)}.",
            "",
            "```",
            report["command"].replace("`", "'"),
            "```",
            "",
        ]
    )


def table(shown: list[Column], report: dict[str, Any]) -> list[str]:
    """The lines of a table with the columns `shown`, a row each of the report's."""
    head = "| " + " | ".join(_escape(column.heading) for column in shown) + " |"
    rule = "| " + " | ".join("---" if column.key in ("name", "training") else "---:" for column in shown) + " |"
    return [head, rule, *("| " + " | ".join(_cell(c, row) for c in shown) + " |" for row in report["rows"])]


def _cell(column: Column, row: dict[str, Any]) -> str:
    """A figure, bold where it is the best or tied with it, its interval behind it in brackets."""
    text = _escape(column.text(row[column.key]))
    if row.get(BEST.get(column.key, "")):
        text = f"**{text}**"
    detail = DETAILS.get(column.key)
    known = None if detail is None else row.get(detail.key)
    return text if detail is None or known is None else f"{text} ({_escape(detail.text(known))})"


def title(report: dict[str, Any], written: Callable[[str], str] = str, most: int = 3, longest: int = 48) -> str:
    """What the report compares, in a line: `most` names of at most `longest` letters, and how many more there are.

    `written` makes HTML or whatever of each name.
    """
    names = list(dict.fromkeys(run["name"] for run in report["runs"]))
    shown = [written(name if len(name) <= longest else name[: longest - 1] + "…") for name in names[:most]]
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    listed = shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]
    if any(row["method"] == "teacher" for row in report["rows"]):
        return f"{listed} against the teacher"
    return f"{listed}, side by side" if len(names) > 1 else f"{listed}: quality and speed"


def plain(report: dict[str, Any]) -> str:
    """The figures that matter most, in columns of equal width."""
    wanted = [
        "name",
        "nfe",
        "frechet_distance",
        "frechet_ratio",
        "precision",
        "recall",
        "prompt_agreement",
        "clip_score",
    ]
    wanted += ["latency_ms", "speedup", "images_per_second"]
    shown = [c for c in columns(report) if c.key in wanted]
    cells = [[c.heading for c in shown]] + [[c.text(row[c.key]) for c in shown] for row in report["rows"]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    lines = [
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def spread(row: dict[str, Any]) -> str:
    """The 5th to 95th percentile of a row's latency."""
    return f"{significant(row['latency_ms_p5'])}–{significant(row['latency_ms_p95'])}"


def _escape(text: str) -> str:
    """Text that stays text in a Markdown table: no cell breaks, no HTML, no emphasis, no links."""
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, safe)
    for sign in "\\|*_`[]":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())
