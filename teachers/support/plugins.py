"""Classes that installed packages register as entry points. A broken plug-in is reported by name and left out."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

OWN_PACKAGES = ("teachers", "eval", "distill")  # the top-level packages of this project
PREFIX = "distill."  # of the names of this project's entry-point groups

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plugins:
    """The classes of an entry-point group by name, and one sentence for each entry point that could not be used.

    A name may have both: a plug-in that repeats the name of a class of this project is left out, the class is not.
    """

    classes: dict[str, type[Any]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def is_own(point: EntryPoint) -> bool:
    """Whether an entry point names a class of this project."""
    return point.value.partition(":")[0].partition(".")[0] in OWN_PACKAGES


def is_own_class(kind: type[Any]) -> bool:
    """Whether a class is of this project, not of another package."""
    return kind.__module__.partition(".")[0] in OWN_PACKAGES


def installed_points(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group that all installed packages register.

    The packages' metadata is read again only if `sys.path` or one of its folders has changed, because a recipe asks
    for several classes and a search reads a file of every installed package.
    """
    return _read_points(group, tuple((folder, _modified(folder)) for folder in sys.path))


@lru_cache(maxsize=64)
def _read_points(group: str, path: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def _modified(folder: str) -> int:
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


def points_by_name(points: Iterable[EntryPoint]) -> dict[str, list[EntryPoint]]:
    """Entry points by name, sorted, those of this project first; copies with equal values are dropped."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for point in sorted(points, key=lambda point: (point.name, not is_own(point), point.value)):
        found.setdefault(point.name, {})[point.value] = point
    return {name: list(values.values()) for name, values in found.items()}


def load_point(points: list[EntryPoint], check: Callable[[Any], Any], kind: str) -> type[Any]:
    """The class of one name.

    Args:
        points: The entry points with that name, from `points_by_name`.
        check: Raises an exception if its argument cannot be used.
        kind: What the class is, for messages, such as "teacher family".

    Returns:
        The class. A class of this project takes precedence over plug-ins with the same name.

    Raises:
        ValueError: If the class cannot be imported or used, or several packages register the name.
    """
    point = points[0]
    if len(points) > 1 and not is_own(point):
        values = " and ".join(_origin(other) for other in points)
        raise ValueError(f"several packages register the {kind} {point.name!r}: {values}; uninstall all but one")
    try:
        found: type[Any] = point.load()
        check(found)
    except (Exception, SystemExit) as error:  # a plug-in can fail in any way
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the {kind} {point.name!r} of {_origin(point)} could not be loaded: {type(error).__name__}: {reason}"
        ) from error
    return found


def load_plugins(
    group: str, kind: str, check: Callable[[Any], Any], points: Iterable[EntryPoint] | None = None
) -> Plugins:
    """Import every class of an entry-point group.

    Args:
        group: The group.
        kind: What its classes are, for messages.
        check: Raises an exception if a class cannot be used.
        points: The entry points; by default those of all installed packages.

    Returns:
        The classes, and a sentence for each entry point that is left out.
    """
    found = points_by_name(installed_points(group) if points is None else points)
    plugins = Plugins()
    for name, same in found.items():
        if len(same) > 1 and is_own(same[0]):
            others = " and ".join(_origin(other) for other in same[1:])
            plugins.problems[name] = f"the {kind} {name!r} of {others} is left out: this project has one of that name"
        try:
            plugins.classes[name] = load_point(same, check, kind)
        except ValueError as error:
            plugins.problems[name] = f"{error}; it is left out"
    return plugins


def plugin_at_fault(error: BaseException) -> str | None:
    """The plug-in of another package whose code `error` passed through; None if there is none."""
    points = {
        point.value.partition(":")[0].partition(".")[0]: point
        for group in entry_points().groups
        if group.startswith(PREFIX)
        for point in installed_points(group)
        if not is_own(point)
    }
    trace, found = error.__traceback__, None
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        found = points.get(module.partition(".")[0], found)
        trace = trace.tb_next
    return None if found is None else f"{found.name!r} of {_origin(found)}"


def report(problems: Mapping[str, str]) -> None:
    """Log each problem once in this process."""
    for problem in problems.values():
        _report(problem)


@cache
def _report(problem: str) -> None:
    logger.warning(problem)


def _origin(point: EntryPoint) -> str:
    package = "" if point.dist is None else f"the package {point.dist.name} "
    return f"{package}({point.value})"
