"""Installs packages with entry points for the time of a test, in this process."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest


def install(monkeypatch: pytest.MonkeyPatch, site: Path, name: str, points: Mapping[str, Sequence[str]]) -> None:
    """Add the metadata of an installed package, as pip would write it.

    Args:
        monkeypatch: Undoes it.
        site: An empty folder for it, which is added to the path; modules in it can be imported too.
        name: The package's name.
        points: Lines "name = module:attribute" by entry-point group.
    """
    info = site / f"{name.replace('-', '_')}-0.0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
    lines = [line for group, entries in points.items() for line in (f"[{group}]", *entries, "")]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(site)
