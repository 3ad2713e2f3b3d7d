"""Colours and shapes of methods, the same in charts, tables and cards.

The colours of each theme have a contrast of at least 4.5 to its backgrounds, and remain distinct under protanopia,
deuteranopia and tritanopia. Charts also use shapes and dashes, so no difference depends on colour alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

LIGHT = ("#2b323d", "#2447f0", "#c14a00", "#0d8059", "#70309a", "#641900")
DARK = ("#8f97a3", "#2f9bff", "#e49243", "#39f0b3", "#ffbbff", "#ceff2a")
BACKGROUNDS = {"light": ("#ffffff", "#f6f7f9"), "dark": ("#181e28", "#0f131a")}  # of cards and of the page
MARKERS = ("o", "s", "D", "h", "^", "v")  # matplotlib's names
DASHES = ((0, ()), (0, (6, 4)), (0, (2, 3)))  # of several curves of one method


def series_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The series of each method: 0 for the teacher, the others in order of appearance."""
    methods = dict.fromkeys(["teacher", *(row["method"] for row in rows)])
    students = len(LIGHT) - 1
    return {method: i if i <= students else 1 + (i - 1) % students for i, method in enumerate(methods)}


def style_sheet() -> str:
    """The colours as CSS variables, for the light and the dark theme."""
    light, dark = (" ".join(f"--series-{i}: {c};" for i, c in enumerate(cs)) for cs in (LIGHT, DARK))
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
