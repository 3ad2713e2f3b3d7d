"""Every option of every dataclass: wrong values are refused with a sentence that names the option."""

import dataclasses
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import pytest

from distill.config.evaluation_section import EvaluationRecipe
from distill.config.recipe import Recipe
from distill.config.sections import (
    DataRecipe,
    MemoryRecipe,
    OptimizerRecipe,
    TeacherRecipe,
    TrainRecipe,
)
from distill.config.typed import InvalidOption, build, check_value, document, option
from distill.methods.dmd_options import DMDOptions
from distill.methods.f_distill import FDistillOptions
from distill.methods.lcm import LCMOptions
from distill.methods.rcm import RCMOptions
from distill.methods.scm import SCMOptions
from distill.methods.sid import SIDOptions
from eval.config.options import Options, Timing
from teachers.loading.lora_files import Lora
from tests.plugin.fewstep_plugin.regression import RegressionOptions

CLASSES = (
    *(Recipe, TeacherRecipe, DataRecipe, OptimizerRecipe, TrainRecipe, MemoryRecipe, EvaluationRecipe, Lora),
    *(DMDOptions, SCMOptions, RCMOptions, SIDOptions, FDistillOptions, LCMOptions, RegressionOptions, Options, Timing),
)
WRONG: dict[str, Any] = {
    "negative": -1,
    "zero": 0,
    "nan": math.nan,
    "inf": math.inf,
    "minus inf": -math.inf,
    "huge": 1e300,
    "huge int": 10**30,
    "large": 2**61,
    "tiny": 1e-60,
    "bool": True,
    "string": "many",
    "list": [[]],
    "empty": "",
}
# Values of these kinds that an option can use. All others must be refused.
MEANINGFUL: dict[str, set[str]] = {
    "Recipe.seed": {"zero", "large"},
    "TeacherRecipe.sigma_data": set(),
    "DataRecipe.limit": {"zero", "large"},
    "OptimizerRecipe.betas": {"zero"},
    "OptimizerRecipe.weight_decay": {"zero", "large"},  # at most 1 / lr
    "OptimizerRecipe.warmup": {"zero"},
    "TrainRecipe.steps": {"zero"},
    "TrainRecipe.ema": {"zero"},
    "TrainRecipe.max_norm": {"large"},
    "TrainRecipe.keep_every": {"zero", "large"},
    "TrainRecipe.evaluate_every": {"zero", "large"},
    **{f"TrainRecipe.{name}": {"large"} for name in ("checkpoint_every", "keep_checkpoints", "log_every")},
    "EvaluationRecipe.validation_seeds": {"zero"},
    "EvaluationRecipe.validation_every": {"zero"},
    "Lora.scale": {"negative", "zero"},
    **{
        f"{method}.{name}": {"zero"}
        for method in ("DMDOptions", "FDistillOptions")
        for name in ("regression_pairs", "regression_weight", "guidance_weight", "guidance_noise_range")
    },
    **{
        f"{method}.{name}": {"zero"}
        for method in ("DMDOptions", "SIDOptions", "FDistillOptions")
        for name in (
            *("noise_range", "gan_noise_range", "gan_weight", "discriminator_weight", "r1_weight"),
            "fake_score_alignment",
        )
    },
    "SIDOptions.alpha": {"negative", "zero"},
    "SCMOptions.proposal": {"negative", "zero"},
    "SCMOptions.tangent_offset": {"zero"},
    "SCMOptions.adaptation_steps": {"zero"},
    "LCMOptions.adaptation_steps": {"zero"},
    "LCMOptions.target_ema": {"zero"},
    "RegressionOptions.pairs": {"large"},
    "Options.seed": {"zero"},
    "Options.guidance": {"zero"},
    "Timing.seconds": {"zero", "large"},
}


def inner(kind: Any) -> Any:
    """The annotation without `| None`."""
    return (
        next((a for a in typing.get_args(kind) if a is not NoneType), kind)
        if NoneType in typing.get_args(kind)
        else kind
    )


def numeric() -> list[tuple[type, str, Any]]:
    """Class, name and annotation of every option that holds numbers."""
    found = []
    for cls in CLASSES:
        for field in dataclasses.fields(cls):
            kind = inner(typing.get_type_hints(cls)[field.name])
            item = typing.get_args(kind)[0] if typing.get_origin(kind) in (tuple, Sequence) else kind
            if item in (int, float):
                found.append((cls, field.name, kind))
    return found


def wrong_value(kind: Any, value: Any) -> Any:
    """`value` as an option of this kind: the first or last number of a pair, the only one of a list."""
    arguments = typing.get_args(kind)
    if not arguments:
        return value
    return [value] if ... in arguments or len(arguments) == 1 else [value, 0.97]


@pytest.mark.parametrize(("cls", "name", "kind"), numeric(), ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.first_is_quick
def test_wrong_numbers_are_refused_with_the_name_of_the_option(cls, name, kind):
    accepted = set()
    for label, value in WRONG.items():
        try:
            check_value(cls, name, wrong_value(kind, value))
        except InvalidOption as error:
            assert error.key.startswith(name) and "must " in str(error) and "\n" not in str(error)
            assert "got " in str(error)
        else:
            accepted.add(label)
    assert accepted == MEANINGFUL.get(f"{cls.__name__}.{name}", set())


def test_the_table_names_existing_options():
    assert set(MEANINGFUL) <= {f"{cls.__name__}.{name}" for cls, name, _ in numeric()}
    assert len(numeric()) > 45


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_texts_and_flags_of_another_type_are_refused(cls):
    for field in dataclasses.fields(cls):
        kind = inner(typing.get_type_hints(cls)[field.name])
        wrong = {str: ["", " ", "a\0b", 3, True, ["a"]], bool: [1, 0.0, "yes", [True]]}.get(kind, [])
        if typing.get_origin(kind) is typing.Literal:
            wrong = ["", "other", 3, True, ["a"]]
        for value in wrong:
            with pytest.raises(InvalidOption, match=rf"^{field.name} must "):
                check_value(cls, field.name, value)


@dataclass
class PlugInOptions:
    """A plug-in's options: a plain dataclass, with and without limits."""

    weight: float = option(0.5, "Weight of the loss.", at_least=0)
    rate: float = 0.1
    name: str = "a"
    angles: tuple[float, ...] = option((0.5,), "Angles.", above=0, below=2, order="decrease")
    pairs: list[int] = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": -1}, "method.weight must be at least 0, got -1.0"),
        ({"weight": math.inf}, "method.weight must be at least 0 and finite, got inf"),
        ({"rate": math.nan}, "method.rate must be finite, got nan"),
        ({"rate": 1e300}, "method.rate must be finite in single precision, got 1e+300"),
        ({"rate": 1e-46}, "method.rate must be 0 or at least 1.4e-45 in size, got 1e-46"),
        ({"name": ""}, "method.name must be a text that is not empty, got ''"),
        ({"angles": [0.5, 0.6]}, "method.angles must decrease, got [0.5, 0.6]"),
        ({"angles": [0.5, math.nan]}, "method.angles must be above 0"),
        ({"pairs": [1, "x"]}, "method.pairs[1] must be a whole number, got 'x'"),
    ],
)
def test_options_of_plug_ins_are_checked_alike(values, message):
    with pytest.raises(InvalidOption) as error:
        build(PlugInOptions, values, "method")
    assert str(error.value).startswith(message.replace("above 0", "positive"))


class Mode(Enum):
    FAST = "fast"
    EXACT = 2


@dataclass
class TypedOptions:
    """A plug-in's options with every kind of annotation."""

    size: int | float = 1
    layers: int | str = "all"
    level: Literal[1, 2, "auto"] = "auto"
    flag: Literal[True, "auto"] = "auto"
    pair: tuple[int, str] = (1, "a")
    mode: Mode = Mode.FAST
    file: Path | None = None
    bare: list = dataclasses.field(default_factory=list)
    names: frozenset[str] = frozenset()
    weights: Mapping[int, float] = dataclasses.field(default_factory=dict)
    found: int = dataclasses.field(init=False, default=3)


RIGHT = {
    "size": [(2, 2), (2.5, 2.5)],
    "layers": [(3, 3), ("first", "first")],
    "level": [(2, 2), ("auto", "auto")],
    "flag": [(True, True)],
    "pair": [([2, "b"], (2, "b"))],
    "mode": [("fast", Mode.FAST), (2, Mode.EXACT), (Mode.EXACT, Mode.EXACT)],
    "file": [("a/b", Path("a/b")), (None, None)],
    "bare": [([1, "x"], [1, "x"])],
    "names": [(["a", "b", "a"], frozenset("ab"))],
    "weights": [({1: 2}, {1: 2.0})],
}
WRONG_KINDS = [
    ("size", "x", "must be a whole number, got 'x' or must be a number, got 'x'"),
    ("layers", 1.5, "must be a whole number, got 1.5 or must be a string, got 1.5"),
    ("level", 1.0, "must be one of 1, 2, auto, got 1.0"),
    ("level", True, "must be one of 1, 2, auto, got True"),
    ("flag", 1, "must be one of True, auto, got 1"),
    ("pair", ["b", 2], "must be a whole number, got 'b'"),
    ("pair", [2], "must be a list of 2 values, got [2]"),
    ("mode", "fsat", "must be one of fast, 2, got 'fsat', did you mean 'fast'?"),
    ("file", 3, "must be a string, got 3"),
    ("bare", "x", "must be a list, got 'x'"),
    ("names", [""], "must be a text that is not empty, got ''"),
    ("weights", {"a": 2}, "must be a whole number, got 'a'"),
    ("weights", {1: math.nan}, "must be finite, got {1: nan}"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_options_of_every_annotation_are_converted(name):
    for value, expected in RIGHT[name]:
        found = getattr(build(TypedOptions, {name: value}, "method"), name)
        assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(("name", "value", "message"), WRONG_KINDS)
def test_wrong_kinds_of_every_annotation_are_refused(name, value, message):
    with pytest.raises(InvalidOption) as error:
        build(TypedOptions, {name: value}, "method")
    assert str(error.value).startswith(f"method.{name}") and str(error.value).endswith(message)


def test_fields_that_a_class_sets_itself_are_no_keys():
    with pytest.raises(ValueError, match=r"unknown key 'method\.found'; the keys here are size, .*, weights$"):
        build(TypedOptions, {"found": 3}, "method")
    assert [doc.key for doc in document(TypedOptions)] == list(RIGHT)


RELATIONS = [
    (OptimizerRecipe, {"lr": 0.5, "weight_decay": 3.0}, "weight_decay must be at most 1 / lr"),
    (TrainRecipe, {"batch_size": 6, "accumulation": 4}, "batch_size must be a multiple of train.accumulation"),
    (DataRecipe, {"streaming": True}, "streaming must be false without data.images"),
    (DataRecipe, {"images": "pocket", "column": "text"}, "column must be null with data.images=pocket"),
    (DMDOptions, {"timesteps": [1, 2]}, "timesteps must decrease"),
    (DMDOptions, {"timesteps": [700, 700]}, "timesteps must decrease"),
    (DMDOptions, {"noise_range": [0.9, 0.1]}, "noise_range must increase"),
    (DMDOptions, {"gan_noise_range": [0.5, 0.5]}, "gan_noise_range must increase"),
    (DMDOptions, {"guidance_noise_range": [0.9, 0.1]}, "guidance_noise_range must increase"),
    (DMDOptions, {"regression_weight": 1, "regression_pairs": 0}, "regression_pairs must be at least 1"),
    (DMDOptions, {"gan_weight": 1, "discriminator_weight": 0}, "discriminator_weight must be positive"),
    (DMDOptions, {"r1_weight": 1}, "r1_weight must be 0 without a discriminator"),
    (SIDOptions, {"r1_weight": 1}, "r1_weight must be 0 without a discriminator"),
    (SCMOptions, {"proposal": [0.3, -1]}, "proposal must have a standard deviation above 0"),
    (SCMOptions, {"second_times": []}, "second_times must have at least one angle"),
    (SCMOptions, {"drift": "data", "guidances": [2.0]}, "guidances must be empty with drift=data"),
    (RCMOptions, {"dmd": {"noise_range": [0.9, 0.1]}}, "dmd.noise_range must increase"),
    (RCMOptions, {"dmd": {"fake_score_alignment": 0.1}}, "dmd.fake_score_alignment must be 0 with scm.adapt"),
    (LCMOptions, {"timesteps": [999, 499], "second_times": [0.5]}, "second_times cannot be combined with timesteps"),
    (FDistillOptions, {"gan_weight": 0}, "gan_weight must be above 0"),
    (MemoryRecipe, {"tier": "lora", "offload_teacher": True}, "offload_teacher must be false"),
]


@pytest.mark.parametrize(("cls", "values", "message"), RELATIONS)
def test_options_that_contradict_each_other_are_refused(cls, values, message):
    with pytest.raises(InvalidOption) as error:
        build(cls, values, "")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("cls", "values", "keys"), [
    (DMDOptions, {"regression_weight": 1, "regression_pairs": 0}, ["regression_pairs", "regression_weight"]),
    (DMDOptions, {"guidance_noise": "own", "guidance_weight": 0}, ["guidance_weight", "guidance_noise"]),
    (DMDOptions, {"gan_weight": 1, "discriminator_weight": 0}, ["discriminator_weight", "gan_weight"]),
    (DMDOptions, {"r1_weight": 1}, ["r1_weight", "gan_weight"]),
    (SCMOptions, {"drift": "data", "guidances": [2.0]}, ["guidances", "drift"]),
    (SCMOptions, {"tangent": "finite_difference", "tangent_precision": "tf32"}, ["tangent_precision", "tangent"]),
    (RCMOptions, {"dmd": {"fake_score_alignment": 0.1}}, ["dmd.fake_score_alignment", "scm.adaptation_steps"]),
    (LCMOptions, {"timesteps": [999, 499], "second_times": [0.5]}, ["second_times", "timesteps"]),
    (FDistillOptions, {"noise_range": [0.0, 1.0], "gan_noise_range": [0.2, 0.8]}, ["gan_noise_range", "noise_range"]),
])  # fmt: skip
def test_both_options_of_a_contradiction_have_their_full_names(cls, values, keys):
    with pytest.raises(InvalidOption) as error:
        build(cls, values, "method")
    assert [word for word in re.split(r"[^a-z0-9_.]+", str(error.value)) if word.startswith("method.")] == [
        f"method.{key}" for key in keys
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples": 1}, "--samples must be at least 2, got 1"),
        ({"batch_size": True}, "--batch-size must be a whole number, got True"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"guidance": math.nan}, "--guidance must be at least 0, at most 1000 and finite, got nan"),
        ({"few_steps": (1, 0)}, "few_steps must be at least 1, got [1, 0]"),
        ({"prompts": ""}, "--prompts must be a text that is not empty, got ''"),
        ({"steps": "0"}, "--steps must be whole numbers of at least 1"),
    ],
)
def test_options_of_an_evaluation_are_named_as_on_the_command_line(values, message, tmp_path):
    with pytest.raises(ValueError) as error:
        Options(**{"runs": ["x"], "out": tmp_path} | values)
    assert str(error.value).startswith(message)
