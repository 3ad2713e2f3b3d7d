"""Names to classes, through entry points: built-in and foreign methods and families come through the same door.

A recipe names an installed plug-in and nothing else, so that a YAML file from a stranger cannot run code.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from teachers.support.errors import suggest

DISTILLERS = "distill.distillers"
TEACHERS = "distill.teachers"


def installed(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, without importing any of them."""
    return {point.name: point for point in entry_points(group=group)}


def find(group: str, name: str) -> type[Any]:
    """The class registered as `name`; ValueError with the known names where there is none."""
    known = installed(group)
    kind = "method" if group == DISTILLERS else "teacher family"
    if not known:
        raise ValueError(f"no {kind} is installed at all; install the project first: pip install -e .")
    if name not in known:
        raise ValueError(
            f"there is no {kind} {name!r}{suggest(name, known)}; installed are {', '.join(sorted(known))} "
            f"(another package adds one through the entry-point group {group})"
        )
    return known[name].load()
