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


@pytest.mark.exhaustive
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


# The first versions without these known vulnerabilities: code execution, memory errors and unbounded work on files.
SAFE = {
    "torch": ((2, 10), "CVE-2025-32434 and CVE-2026-24747: torch.load with weights_only"),
    "transformers": ((5, 5), "CVE-2026-4372 and CVE-2026-5241: a config that names code or trusts its own"),
    "diffusers": ((0, 42, 1), "0.42.0 imports the modules that model_index.json names"),
    "pillow": ((12, 3), "CVE-2025-48379 (DDS), CVE-2026-25990 and CVE-2026-42311 (PSD), CVE-2026-40192 (FITS)"),
    "jinja2": ((3, 1, 6), "CVE-2025-27516: sandbox"),
    "pyyaml": ((5, 4), "CVE-2020-14343: full_load"),
    "tqdm": ((4, 66, 3), "CVE-2024-34062: eval of arguments"),
    "pyarrow": ((23, 0, 1), "CVE-2023-47248 (pickles in files), CVE-2026-25087"),
    "datasets": ((4, 0), "scripts of datasets"),
    "gradio": ((6, 7), "CVE-2026-28414 (files outside of the page's), CVE-2026-28415 (redirects)"),
}


def test_lower_bounds_of_dependencies_are_above_known_vulnerabilities():
    text = (ROOT / "setup.cfg").read_text()
    bounds: dict[str, list[tuple[int, ...]]] = {}
    for name, version in re.findall(r"^    ([A-Za-z0-9_.-]+)(?:\[\w+\])?(?:>=|==)([\d.]+)", text, re.MULTILINE):
        key = re.sub(r"[-_.]+", "-", name).lower()
        bounds.setdefault(key, []).append(tuple(int(part) for part in version.split(".")))
    for name, (safe, reason) in SAFE.items():
        assert bounds[name] and all(bound >= safe for bound in bounds[name]), f"{name}: {reason}"
