"""How each front end calls a student: the sections of a model card with code.

A `FrontEnd` is data, so that an export adds one for each format that it writes: `distill.json` lists them as
`front_ends`, each with a name, a language, a code and, if it needs one, a note.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from eval.report.markdown import escape
from teachers.support.text import printable

# What the code of a card calls the model until it is uploaded; `located` replaces it.
PLACEHOLDER = "path/to/this/folder"
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


def to_records(front_ends: Iterable[FrontEnd]) -> list[dict[str, str]]:
    """Front ends as entries of `distill.json`."""
    return [asdict(front_end) for front_end in front_ends]


def from_record(record: Mapping[str, Any]) -> list[FrontEnd]:
    """The front ends of a `distill.json`, without the one of diffusers, which every card has.

    Raises:
        ValueError: If an entry has other keys.
    """
    try:
        return [FrontEnd(**entry) for entry in record.get("front_ends", ())]
    except TypeError as error:
        raise ValueError(f"front_ends in distill.json must have name, language, code and note ({error})") from error


def located(card: str, model: str) -> str:
    """A card whose code names `model`, a Hub id or a folder, in place of the one that it names now."""
    start, end = MARKER.split("{}")
    before = next((line for line in card.splitlines() if line.startswith(start) and line.endswith(end)), "")
    present = before.removeprefix(start).removesuffix(end) or PLACEHOLDER
    name = re.compile(rf"(?<![\w/.-]){re.escape(present)}(?![\w-])")  # not a part of a longer name
    return name.sub(lambda _: model, card)
