"""Methods and teacher families by name, registered as entry points by this package and by others.

A recipe can only name an installed plug-in, so an untrusted YAML file cannot execute code.
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
    """The class that is registered as `name` in an entry-point group.

    Raises:
        ValueError: If there is none, with the registered names.
    """
    known = installed(group)
    kind = "method" if group == DISTILLERS else "teacher family"
    if not known:
        raise ValueError(f"no {kind} is installed; install the project first: pip install -e .")
    if name not in known:
        raise ValueError(
            f"there is no {kind} {name!r}{suggest(name, known)}; installed are {', '.join(sorted(known))} "
            f"(another package adds one through the entry-point group {group})"
        )
    return known[name].load()
