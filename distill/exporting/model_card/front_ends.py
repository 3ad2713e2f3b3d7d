"""How each front end calls a student: the sections of a model card with code."""

import re
from dataclasses import dataclass

from eval.report.markdown import escape
from teachers.support.text import printable

# What the code of a card calls the model until it is uploaded; `located` replaces it.
PLACEHOLDER = "path/to/this/folder"
TEACHER = "path/to/the/teacher"  # of a student whose teacher was in memory
MARKER = "<!-- model: {} -->"


@dataclass(frozen=True)
class FrontEnd:
    """A way to call a student.

    Attributes:
        name: The front end, such as "ComfyUI"; the heading of its section.
        language: The language of the code block: python, bash, json or text.
        code: The exact call. It names the model as PLACEHOLDER.
        note: Sentences below the code.
    """

    name: str
    language: str
    code: str
    note: str = ""

    def section(self) -> str:
        """The section of the model card."""
        code = printable(self.code, lines=True).replace("```", "'''").strip("\n")
        note = f"\n{printable(self.note, lines=True)}\n" if self.note else ""
        return f"### {escape(self.name)}\n\n```{self.language}\n{code}\n```\n{note}"


def named(card: str) -> str:
    """The model that the code of a card names: PLACEHOLDER until an upload."""
    start, end = MARKER.split("{}")
    line = next((line for line in card.splitlines() if line.startswith(start) and line.endswith(end)), "")
    return line.removeprefix(start).removesuffix(end) or PLACEHOLDER


def located(card: str, model: str) -> str:
    """A card whose code names `model`, a Hub id or a folder, in place of the one that it names now."""
    name = re.compile(rf"(?<![\w/.-]){re.escape(named(card))}(?![\w-])")  # not a part of a longer name
    return name.sub(lambda _: model, card)
