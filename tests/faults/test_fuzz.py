"""Mutated recipes: each gives an error of one line or starts, without traceback, endless loop or files elsewhere.

    python -m pytest tests/faults/test_fuzz.py                       # 60 files
    FUZZ=2000 python -m pytest tests/faults/test_fuzz.py --durations=1

Each file is processed up to the start of processes and the loading of weights: schema, plug-ins, data, folder,
fingerprint.
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

from distill.config.recipe import load
from distill.config.sections import TrainRecipe
from distill.data.hf_datasets import HFImages
from distill.train import train
from tests.settings import RECIPES as RECIPES_FOLDER

train_module = sys.modules["distill.train"]  # `distill.train` is also the name of a function
EXAMPLES = int(os.environ.get("FUZZ", "60"))
RECIPES = [file.read_text() for file in sorted(RECIPES_FOLDER.glob("*.yaml"))]
LIMIT = 5.0  # CPU seconds for one file; waiting is limited by pytest's timeout

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
    """A recipe with up to four changed values, and possibly changes of its text."""
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
    """The recipe would start."""


def start(*_: object) -> None:
    raise Started


def no_hub(*_: object) -> None:
    raise ValueError("datasets are not loaded in this test")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "a" / "b" / "inner").mkdir(parents=True)
    inner = folder / "a" / "b" / "inner"
    (inner / "prompts.txt").write_text("a coat\n")
    (inner / "images").mkdir()
    return folder


def attempt(sandbox: Path, text: str, overrides: Sequence[str] = ()) -> bool:
    """Whether the recipe `text` would start; fails unless it starts or raises an error that the command line prints."""
    file = sandbox / "a" / "b" / "inner" / "recipe.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    before = files(sandbox)
    folder, start_time, started = None, time.process_time(), False
    try:
        recipe = load(file, overrides)
        folder = recipe.folder.resolve()
        if sandbox not in folder.parents:
            return True  # an absolute output is allowed, but would write outside of the sandbox
        with patch.object(train_module, "Engine", start), patch.object(HFImages, "__init__", no_hub):
            train(recipe)
    except Started:
        started = True
    except (ValueError, OSError) as error:  # the command line prints these
        assert str(error).strip() and not re.search(r"Traceback|object at 0x", str(error)), error
    assert time.process_time() - start_time < LIMIT
    strays = {path for path in files(sandbox) - before if folder is None or folder not in (path, *path.parents)}
    strays -= set(folder.parents) if folder else set()
    assert not strays
    for path in files(sandbox) - before:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    return started


@pytest.mark.slow
@pytest.mark.timeout(300 + EXAMPLES)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=mutated(), overrides=OVERRIDES)
def test_mutated_recipe_starts_or_is_an_error(sandbox, text, overrides):
    attempt(sandbox, text, [f"{key}={value}" for key, value in overrides])


BAD = [None, True, 0, -1, 10**30, 10**400, 1.5, math.nan, math.inf, "", "\0", "x" * 5000, "~", "${a}", "..", [], [1],
       [None], {}, {"a": 1}, {"name": "scm"}, "a=b", "\u00e9"]  # fmt: skip


def keys(group: dict[str, Any], where: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in group.items():
        yield (*where, key)
        if isinstance(value, dict):
            yield from keys(value, (*where, key))


@pytest.mark.slow
@pytest.mark.timeout(300 + EXAMPLES)
def test_every_key_with_every_kind_of_wrong_value(sandbox):
    """Systematic, because random mutations seldom combine a key with a certain value."""
    values = yaml.safe_load((RECIPES_FOLDER / "scm.yaml").read_text())
    values["train"] = {f.name: f.default for f in dataclasses.fields(TrainRecipe)} | values["train"]
    started = 0
    for number, where in enumerate(keys(values)):
        for bad in BAD if EXAMPLES > 1000 else BAD[3 * (number % 2) :: 6]:
            changed = copy.deepcopy(values)
            group = changed
            for key in where[:-1]:
                group = group[key]
            group[where[-1]] = bad
            started += attempt(sandbox, yaml.safe_dump(changed))
    assert started  # some values are valid for some keys


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture(scope="module", autouse=True)
def inside(sandbox):
    with pytest.MonkeyPatch.context() as patcher:
        patcher.chdir(sandbox / "a" / "b" / "inner")
        patcher.setattr(
            huggingface_hub.constants, "HF_HUB_OFFLINE", True
        )  # a name with a slash is a dataset on the Hub
        yield


BILLION_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 9)}]\n" for before, after in pairwise("abcdefghi")
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [BILLION_LAUGHS, "a: &a\n  b: *a\n", "[" * 3000, "name: x\nname: y\n", "? [a, b]\n: c\n", "\x00\x01"],
    ids=["billion laughs", "a loop", "deep", "twice", "a list as key", "control characters"],
)
def test_malicious_yaml_is_an_error(tmp_path, text):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    start_time = time.process_time()
    with pytest.raises(ValueError, match="recipe"):
        load(file)
    assert time.process_time() - start_time < LIMIT
