"""Write the licences of every package that an installation brings along into docs/reference/licences.md.

    pip install -e ".[test,docs]" && python docs/make_licences.py

Reads the metadata of the installed packages. Run it when setup.cfg's dependencies change.
"""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).parent / "reference" / "licences.md"
HEAD = """\
# Licences of dependencies

Every package that an installation of fewstep brings along on Linux, with the licence in its metadata. An installation
without extras has the packages of the first table. Made by `python docs/make_licences.py`.
"""


def closure(name: str, extras: frozenset[str] = frozenset()) -> dict[str, Distribution | None]:
    """The installed dependencies of a package by name, with their own dependencies; None if one is not installed."""
    found: dict[str, Distribution | None] = {}
    visited = set()
    waiting = [(name, extras)]
    while waiting:
        current, wanted = waiting.pop()
        if (current, wanted) in visited:
            continue
        visited.add((current, wanted))
        try:
            package = distribution(current)
        except PackageNotFoundError:
            found[current] = None
            continue
        found[current] = package
        for line in package.requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in wanted or {""}):
                waiting.append((_canonical(requirement.name), frozenset(requirement.extras)))
    return found


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(package: Distribution) -> str:
    """The licence that a package's metadata declare, in one line."""
    data = package.metadata
    classifiers = [
        entry.rpartition(" :: ")[2] for entry in data.get_all("Classifier") or () if entry.startswith("License :: ")
    ]
    declared = data.get("License-Expression") or ", ".join(classifiers) or data.get("License") or ""
    declared = "" if declared == "UNKNOWN" else declared
    first = declared.strip().splitlines()[0] if declared.strip() else "not declared"
    return first if len(first) <= 100 else f"{first[:97]}..."


def table(packages: dict[str, Distribution | None]) -> str:
    lines = ["| package | version | licence |", "| --- | --- | --- |"]
    for name, package in sorted(packages.items()):
        cells = (name, package.version, licence(package)) if package else (name, "", "not installed here")
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    extras = frozenset(distribution("fewstep").metadata.get_all("Provides-Extra") or ())
    needed = closure("fewstep")
    optional = {name: package for name, package in closure("fewstep", extras).items() if name not in needed}
    del needed["fewstep"]
    text = f"{HEAD}\n## Always\n\n{table(needed)}\n\n## With extras\n\nThe extras are {', '.join(sorted(extras))}.\n\n"
    PAGE.write_text(text + table(optional) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
