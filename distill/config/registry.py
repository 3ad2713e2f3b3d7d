"""Methods and teacher families by name, registered as entry points by this package and by others.

A recipe can only name an installed plug-in, so an untrusted YAML file cannot execute code.
"""

import dataclasses
import typing
from importlib.metadata import EntryPoint
from typing import Any

from teachers.loading.registry import GROUP, check_family
from teachers.support.errors import suggest
from teachers.support.plugins import installed_points, load_point, points_by_name

DISTILLERS = "distill.distillers"
TEACHERS = GROUP


def installed(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, without importing any of them."""
    return {name: same[0] for name, same in points_by_name(installed_points(group)).items()}


def find(group: str, name: str) -> type[Any]:
    """The class that is registered as `name` in an entry-point group. No other plug-in is imported.

    Raises:
        ValueError: If there is none, with the registered names; if it cannot be imported or used; or if several
            packages register it.
    """
    known = points_by_name(installed_points(group))
    kind = "method" if group == DISTILLERS else "teacher family"
    if not known:
        raise ValueError(f"no {kind} is installed; install the project first: pip install -e .")
    if name not in known:
        raise ValueError(
            f"there is no {kind} {name!r}{suggest(name, known)}; installed are {', '.join(sorted(known))} "
            f"(another package adds one through the entry-point group {group})"
        )
    return load_point(known[name], _check_method if group == DISTILLERS else check_family, kind)


def _check_method(method: Any) -> None:
    from distill.methods.base import Distiller  # imports this module through its recipes

    if not (isinstance(method, type) and issubclass(method, Distiller)):
        raise TypeError("an entry point must name a subclass of distill.methods.base.Distiller")
    if missing := sorted(method.__abstractmethods__):
        raise TypeError(f"{method.__name__} must implement {', '.join(missing)}")
    options, phases = getattr(method, "Options", None), method.PHASES
    if not dataclasses.is_dataclass(options):
        raise TypeError(f"{method.__name__}.Options must be a dataclass of the method's options")
    if "name" in {field.name for field in dataclasses.fields(options)}:
        raise TypeError(f"{method.__name__}.Options must not have an option called name, which selects the method")
    typing.get_type_hints(options)  # raises an exception for names that do not exist
    words = isinstance(phases, tuple) and all(isinstance(phase, str) for phase in phases)
    if not words or not phases or len(set(phases)) < len(phases):
        raise TypeError(f"{method.__name__}.PHASES must be a tuple of different names, got {phases!r}")
