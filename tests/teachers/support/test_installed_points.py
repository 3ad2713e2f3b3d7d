"""Entry points are read again as soon as the installed packages change."""

from teachers.support.plugins import installed_points
from tests.plugins import install

GROUP = "fewstep.test"


def names() -> set[str]:
    return {point.name for point in installed_points(GROUP)}


def test_packages_that_are_installed_or_removed_in_a_running_process_count(tmp_path, monkeypatch):
    assert names() == set()
    with monkeypatch.context() as patch:
        install(patch, tmp_path / "site", "one", {GROUP: ["one = module:One"]})
        assert names() == {"one"}
        install(patch, tmp_path / "site", "two", {GROUP: ["two = module:Two"]})  # into a folder that was read already
        assert names() == {"one", "two"}
    assert names() == set()
