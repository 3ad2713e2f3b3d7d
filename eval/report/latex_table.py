"""The main figures as report.tex: a table for a paper, which needs the LaTeX package booktabs."""

import re
from typing import Any

from eval.report.columns import Column, columns
from eval.report.formats import NOTHING
from teachers.support.text import cleaned, printable

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "×": r"$\times$", "–": "--", "“": "``", "”": "''", '"': "''",
    "[": "{[}", "*": "{*}",  # arguments of the line break before them
}  # fmt: skip


def latex_table(report: dict[str, Any]) -> str:
    """The text of report.tex: the summary columns of every row; intervals in small print; the best values in bold."""
    report = cleaned(report)
    shown = [column for column in columns(report) if column.summary]
    head = " & ".join(latex(column.heading) for column in shown)
    lines = [" & ".join(_cell(column, row) for column in shown) + r" \\" for row in report["rows"]]
    first = sum(row["method"] == "teacher" for row in report["rows"])
    if 0 < first < len(lines):
        lines.insert(first, r"\midrule")
    return "\n".join(
        [
            "% Needs \\usepackage{booktabs}. " + comment(report["command"]),
            rf"\begin{{tabular}}{{l{'r' * (len(shown) - 1)}}}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def latex(text: str) -> str:
    """Text without the characters that LaTeX interprets."""
    return re.sub("|".join(map(re.escape, SPECIAL)), lambda found: SPECIAL[found.group()], printable(text))


def comment(text: str) -> str:
    """Text on one line, for a LaTeX comment."""
    return " ".join(printable(text).split())


def _cell(column: Column, value: dict[str, Any]) -> str:
    text = latex(column.text(value[column.key]))
    if text == latex(NOTHING):
        return "--"
    if column.is_best(value):
        text = rf"\textbf{{{text}}}"
    interval = column.interval_text(value)
    return text if interval is None else rf"{text} {{\scriptsize [{latex(interval)}]}}"
