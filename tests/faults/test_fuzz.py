"""Recipes that nobody would write on purpose: one sentence or a start, never a traceback, a hang or a stray file.

    python -m pytest tests/faults/test_fuzz.py                       # 150 files
    FUZZ=2000 python -m pytest tests/faults/test_fuzz.py --durations=1

Each file goes as far as a run goes before processes start and weights load: schema, plug-ins, data, folder, mark.
"""

import copy
import dataclasses
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import huggingface_hub.constants
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.config.recipe import TrainRecipe, load
from distill.train import train
from tests.settings import RECIPES as RECIPES_FOLDER

EXAMPLES = int(os.environ.get("FUZZ", "150"))
RECIPES = [file.read_text() for file in sorted(RECIPES_FOLDER.glob("*.yaml"))]
LIMIT = 5.0  # processor seconds for one file; what sleeps instead runs into pytest's own limit

WORDS = st.sampled_from(
    ["", " ", "pocket", "no", "null", "..", "../../up", "a/b", "~", ".", "\0", "x" * 5000, "${oc.env:HOME}", "${name}",
     "${", "é", "\ud83d", "=", "a=b", "!!python/name:os.system", "dmd", "scm", "stable_diffusion", "unconditional",
     "analytic", "os:system", "bf16", "prompts.txt", "images", "inner", "sub/../..", "con", "-", "1e5", "12:30:00",
     "2020-01-01", "<script>"]
)  # fmt: skip
NUMBERS = st.sampled_from([0, 1, -1, 2, 7, 10**9, 10**30, 10**400, 1.5, -0.0, 1e-300, 1e308])
NUMBERS |= st.floats(allow_nan=True, allow_infinity=True)
LEAVES = st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=2), max_leaves=6
)


@st.composite
def mutated(draw) -> str:
    """One of the project's recipes with up to four accidents in its values, then perhaps in its text."""
    values = yaml.safe_load(draw(st.sampled_from(RECIPES)))
    for _ in range(draw(st.integers(0, 4))):
        group = values
        while True:
            keys = sorted(group, key=str)
            key = draw(st.sampled_from(keys)) if keys else None
            if key is None or not isinstance(group[key], dict) or draw(st.booleans()):
                break
            group = group[key]
        what = draw(st.sampled_from(["replace", "drop", "rename", "add"]))
        if key is not None and what == "drop":
            del group[key]
        elif key is not None and what == "rename":
            group[draw(WORDS)] = group.pop(key)
        else:
            group[key if what == "replace" and key is not None else draw(WORDS)] = draw(VALUES)
    text = yaml.safe_dump(values, allow_unicode=True)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        at = draw(st.integers(0, len(text)))
        piece = draw(
            st.sampled_from(["\t", ": ", "- ", "{", "]", "&a ", "*a", "<<: ", "!!set ", "#", "\n", "\x07", "%", "'"])
        )
        text = text[:at] + piece + text[at + draw(st.integers(0, 3)) :]
    return text


OVERRIDES = st.lists(
    st.tuples(WORDS | st.sampled_from(["train.steps", "method.name", "data", "name"]), WORDS), max_size=1
)


class Started(Exception):
    """The recipe was taken."""


def start(*_: object) -> None:
    raise Started


def no_hub(*_: object) -> None:
    raise ValueError("no data sets are fetched here")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "a" / "b" / "inner").mkdir(parents=True)
    inner = folder / "a" / "b" / "inner"
    (inner / "prompts.txt").write_text("a coat\n")
    (inner / "images").mkdir()
    return folder


def attempt(sandbox: Path, text: str, overrides: Sequence[str] = ()) -> bool:
    """Whether the recipe `text` would start; fails on anything but a start or what the command line tells in a line."""
    file = sandbox / "a" / "b" / "inner" / "recipe.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    before = files(sandbox)
    folder, begun, started = None, time.process_time(), False
    try:
        recipe = load(file, overrides)
        folder = recipe.folder.resolve()
        if sandbox not in folder.parents:
            return True  # an absolute output is its owner's choice; here it would litter the machine
        with patch.object(sys.modules["distill.train"], "Engine", start), patch("distill.data.dataset.DataSet", no_hub):
            train(recipe)
    except Started:
        started = True
    except (ValueError, OSError) as error:  # what `teachers.support.errors.run_cli` tells
        assert str(error).strip() and not re.search(r"Traceback|object at 0x", str(error)), error
    assert time.process_time() - begun < LIMIT
    strays = {path for path in files(sandbox) - before if folder is None or folder not in (path, *path.parents)}
    strays -= set(folder.parents) if folder else set()
    assert not strays
    for path in files(sandbox) - before:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    return started


@pytest.mark.timeout(300 + EXAMPLES)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=mutated(), overrides=OVERRIDES)
def test_a_mutated_recipe_gets_a_sentence_or_a_start(sandbox, text, overrides):
    attempt(sandbox, text, [f"{key}={value}" for key, value in overrides])


BAD = [None, True, 0, -1, 10**30, 10**400, 1.5, math.nan, math.inf, "", "\0", "x" * 5000, "~", "${a}", "..", [], [1],
       [None], {}, {"a": 1}, {"name": "scm"}, "a=b", "\u00e9"]  # fmt: skip


def keys(group: dict[str, Any], where: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in group.items():
        yield (*where, key)
        if isinstance(value, dict):
            yield from keys(value, (*where, key))


@pytest.mark.timeout(300 + EXAMPLES)
def test_every_key_with_every_kind_of_wrong_value(sandbox):
    """A sweep, since chance seldom brings the one key and the one value together."""
    values = yaml.safe_load((RECIPES_FOLDER / "scm.yaml").read_text())
    values["train"] = {f.name: f.default for f in dataclasses.fields(TrainRecipe)} | values["train"]
    started = 0
    for where in keys(values):
        for bad in BAD[:: 1 if EXAMPLES > 1000 else 3]:
            spoilt = copy.deepcopy(values)
            group = spoilt
            for key in where[:-1]:
                group = group[key]
            group[where[-1]] = bad
            started += attempt(sandbox, yaml.safe_dump(spoilt))
    assert started  # some of it is right for some keys


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture(scope="module", autouse=True)
def inside(sandbox):
    with pytest.MonkeyPatch.context() as patcher:
        patcher.chdir(sandbox / "a" / "b" / "inner")
        patcher.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # a name with a slash is one on the hub
        yield


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 9)}]\n" for before, after in pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    "text",
    [LAUGHS, "a: &a\n  b: *a\n", "[" * 3000, "name: x\nname: y\n", "? [a, b]\n: c\n", "\x00\x01"],
    ids=["billion laughs", "a loop", "deep", "twice", "a list as key", "control characters"],
)
def test_files_made_to_break_readers(tmp_path, text):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    begun = time.process_time()
    with pytest.raises(ValueError, match="recipe"):
        load(file)
    assert time.process_time() - begun < LIMIT
