"""A release is built by one command, is complete, and has the same bytes every time."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.settings import ROOT


def names(section: str) -> set[str]:
    """The names of the packages in an indented section of setup.cfg."""
    text = (ROOT / "setup.cfg").read_text().partition(section)[2].partition("\n\n")[0]
    return {re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r"^    ([A-Za-z0-9_.-]+)", text, re.MULTILINE)}


def test_licences_of_all_dependencies_are_listed():
    page = (ROOT / "docs" / "reference" / "licences.md").read_text()
    listed = set(re.findall(r"^\| ([a-z0-9-]+) \|", page, re.MULTILINE))
    assert names("install_requires =") and names("install_requires =") | names("[options.extras_require]") <= listed


@pytest.mark.slow
def test_release_is_complete_and_reproducible(tmp_path):
    def release(output: Path) -> str:
        command = [sys.executable, str(ROOT / ".ci" / "release.py"), "--allow-changes", "--output", str(output)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert release(tmp_path / "one") == release(tmp_path / "two") == (tmp_path / "one" / "SHA256SUMS").read_text()
    (sdist,), (wheel,) = (tmp_path / "one").glob("*.tar.gz"), (tmp_path / "one").glob("*.whl")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/conftest.py", "docs/index.md", "LICENSE", "SECURITY.md", "setup.cfg", "mkdocs.yml"} <= packed
    files = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in files if "test" in name.partition("/")[0]]
    assert any(name.endswith("licenses/LICENSE") or name.endswith(".dist-info/LICENSE") for name in files)
