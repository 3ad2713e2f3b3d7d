"""Keys: equal contents give equal keys in every process, and every change gives another key."""

import dataclasses
import enum
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from teachers.support import contents
from teachers.support.keys import code, content, file_content, folder_contents, key
from tests.settings import ROOT

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
NESTED = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Plain:
    def __init__(self, value):
        self.value = value


def same(one, two) -> bool:
    """Whether two values are equal, with types: 1, 1.0 and True differ."""
    if type(one) is not type(two):
        return False
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
    return repr(one) == repr(two)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(NESTED, NESTED)
def test_keys_are_equal_exactly_if_values_are(one, two):
    assert (key(one) == key(two)) == same(one, two)


def test_order_counts_in_sequences_only():
    assert key([1, 2]) != key([2, 1])
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    assert key({"x", "y", "z"}) == key({"z", "y", "x"})
    assert key((1, 2)) == key([1, 2])
    assert len({key("ab", "c"), key("a", "bc"), key(["ab"], "c"), key("ab", ["c"]), key(["ab", "c"])}) == 5


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
        (torch.zeros(2), -torch.zeros(2)),
        (np.zeros(2), np.zeros(2, dtype=np.float32)),
        (torch.float16, torch.bfloat16),
        (Colour.RED, Colour.BLUE),
        (Point(1, 2), Point(2, 1)),
        (Plain(1), Plain(2)),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x[..., 0], lambda x: x[..., 1]),
        (nn.Linear, nn.Conv2d),
        (nn.ReLU(), nn.SiLU()),
        (nn.LayerNorm(2, eps=1e-5), nn.LayerNorm(2, eps=1e-6)),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
    ],
)
def test_values_of_each_kind_are_told_apart(one, two):
    assert key(one) == key(one) != key(two) == key(two)


def test_modules_are_hashed_with_weights_buffers_and_settings_but_not_modes():
    def build():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        module.register_buffer("table", torch.arange(3), persistent=False)
        return module

    module, before = build(), key(build())
    assert key(module) == key(module.eval().requires_grad_(False)) == before
    module.table[1] = 7  # a buffer that is not in the state dict
    assert key(module) != before
    module = build()
    module[0].weight.data[0, 0] += 1e-6
    assert key(module) != before


def test_values_without_known_content_are_errors():
    with pytest.raises(TypeError, match=r"a cache key cannot contain a builtins\.generator"):
        key(iter_nothing())


def iter_nothing():
    yield from ()


# --- files ----------------------------------------------------------------------------------------------------------


def write_tree(folder: Path) -> Path:
    for name, text in {"a/x.txt": "1", "a/b/y.txt": "2", "z.txt": "3"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_folders_are_identified_by_names_and_contents(tmp_path):
    one, two = write_tree(tmp_path / "one"), write_tree(tmp_path / "two")
    os.utime(two / "z.txt", (1, 1))
    (two / ".hidden").write_text("x")
    (two / "README.md").write_text("x")
    assert content(one) == content(two) == content(str(one)) and key(one) == key(two)
    (two / "z.txt").rename(two / "w.txt")
    assert content(one) != content(two)


def test_linked_folders_are_read(tmp_path):
    base, folder = write_tree(tmp_path / "base"), tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "linked").symlink_to(base)
    before = folder_contents(folder)
    assert set(before) == {"inner/linked/a/x.txt", "inner/linked/a/b/y.txt", "inner/linked/z.txt"}
    (base / "z.txt").write_text("4")
    assert folder_contents(folder) != before


def test_a_file_replaced_with_equal_size_and_time_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "SETTLED", -1.0)  # remember also files that were written just now
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    os.utime(file, ns=(10**18, 10**18))
    before = file_content(file)
    for replace in (lambda: file.write_bytes(b"two"), lambda: (tmp_path / "new").rename(file)):
        (tmp_path / "new").write_bytes(b"six")
        replace()
        os.utime(file, ns=(10**18, 10**18))
        assert file_content(file) != before
        before = file_content(file)


def test_unchanged_files_are_read_once_and_large_ones_also_by_later_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "SETTLED", -1.0)
    monkeypatch.setattr(contents, "LARGE", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reads, read = [], contents.sha256_file
    monkeypatch.setattr(contents, "sha256_file", lambda file: reads.append(file.name) or read(file))
    for name, data in (("small", b"abc"), ("large", b"abcdef")):
        (tmp_path / name).write_bytes(data)
        assert file_content(tmp_path / name) == file_content(tmp_path / name)
    assert reads == ["small", "large"]
    monkeypatch.setattr(contents, "_remembered", {})  # another process
    assert file_content(tmp_path / "small") and file_content(tmp_path / "large")
    assert reads == ["small", "large", "small"]
    os.utime(tmp_path / "large", (1, 1))  # touched: read again, and the same
    monkeypatch.setattr(contents, "_remembered", {})
    assert file_content(tmp_path / "large") == read(tmp_path / "large")


def test_files_that_changed_just_now_are_not_remembered(tmp_path):
    """Two changes within the file system's clock can have one time."""
    file = tmp_path / "weights"
    for text in ("one", "two", "six"):
        file.write_text(text)
        assert file_content(file) == contents.sha256_file(file)


def test_names_on_the_hub_are_identified_by_their_files(tmp_path, monkeypatch):
    snapshot = write_tree(tmp_path / "snapshot")
    (snapshot / "config.json").write_text("{}")
    assert content("owner/name") != content("owner/other")
    before = content("owner/name")
    monkeypatch.setattr(contents, "try_to_load_from_cache", lambda name, file: str(snapshot / file))
    found = content("owner/name")
    assert found != before and found == content("owner/other")
    (snapshot / "z.txt").write_text("4")
    assert content("owner/name") != found


# --- code -----------------------------------------------------------------------------------------------------------

PACKAGE = {
    "keys_family/__init__.py": "",
    "keys_family/family.py": "from keys_family import nets\nfrom keys_base import Base\nclass Family(Base):\n    1\n",
    "keys_family/nets.py": "def f():\n    from .deep import g\n    return g\n",
    "keys_family/deep.py": "import keys_helper\ng = 1\n",
    "keys_family/unused.py": "x = 1\n",
    "keys_base.py": "class Base:\n    b = 1\n",
    "keys_helper.py": "h = 1\n",
}


@pytest.fixture
def family(tmp_path, monkeypatch):
    """A family whose code lies in several files and packages."""
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    from keys_family.family import Family

    yield Family
    for name in [name for name in sys.modules if name.startswith("keys_")]:
        del sys.modules[name]


def test_code_covers_bases_and_imports_in_other_files(family, tmp_path):
    before = code(family)
    for name, text in PACKAGE.items():
        (tmp_path / name).write_text(text + "\nchanged = 1\n")
        assert (code(family) == before) == name.endswith("unused.py"), name
        (tmp_path / name).write_text(text)
        assert code(family) == before


def test_code_without_a_file_counts():
    """As in a notebook."""
    one, two = ({"__name__": "__nowhere__"} for _ in range(2))
    exec("class Family:\n    def encode(self):\n        return 1\n", one)
    exec("class Family:\n    def encode(self):\n        return 2\n", two)
    assert code(one["Family"]) == code(one["Family"]) != code(two["Family"])


def test_code_depends_on_libraries(monkeypatch):
    from teachers.support import keys

    before = code("teachers.core.sampling")
    monkeypatch.setattr(keys, "LIBRARIES", ("diffusers",))
    assert code("teachers.core.sampling") != before != code("teachers.core.denoiser")


@pytest.mark.slow
def test_keys_are_those_of_other_processes():
    script = (
        "from tests.teachers.support.test_keys import *\n"
        "torch.manual_seed(0)\n"
        "print(key({'b', 'a', 'c'}, Point(1, 2), nn.Linear(2, 2), same, frozenset('xyz')))\n"
        "print(code('teachers.core.teacher'))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
