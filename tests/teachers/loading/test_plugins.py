"""Broken and odd plug-ins: each is reported by name and breaks nothing else."""

import json
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
import torch
from diffusers import DiffusionPipeline, DiTPipeline, StableDiffusionPipeline

from distill.config.registry import DISTILLERS, TEACHERS, find
from teachers.core.teacher import Teacher
from teachers.families.dit import DiT
from teachers.families.stable_diffusion import StableDiffusion
from teachers.families.unconditional import Unconditional
from teachers.loading.components import check_components
from teachers.loading.registry import (
    GROUP,
    check_family,
    family_by_class,
    feature_models,
    installed,
    load_teacher,
    pipeline_class,
)
from teachers.loading.sketch import sketch
from teachers.support.plugins import load_plugins
from tests.plugins import install

MODULE = """
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from teachers.families.stable_diffusion import StableDiffusion

class OddPipeline(StableDiffusionPipeline):
    pass

class Odd(StableDiffusion):
    pipelines = (OddPipeline,)

class Same(StableDiffusion):
    pipelines = (StableDiffusionPipeline,)

function = print
class Empty(StableDiffusion):
    pipelines = ()
class List(StableDiffusion):
    pipelines = [StableDiffusionPipeline]
class Renamed(StableDiffusion):
    pipelines = (StableDiffusionPipeline,)
    call_names = {"prompt": "text"}
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Function that installs a package with one module and the given families."""

    def make(name: str, *families: str, text: str = MODULE, group: str = GROUP) -> None:
        site = tmp_path / name
        install(monkeypatch, site, name, {group: families})
        (site / f"{name}.py").write_text(text)

    return make


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise RuntimeError('no GPU\\nhere')", "RuntimeError: no GPU here"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = ", "SyntaxError"),
        ("", "AttributeError"),
    ],
)
@pytest.mark.slow
def test_a_family_that_cannot_be_imported_is_named_and_left_out(package, text, words, text_pipeline, logged):
    package("broken_package", "broken = broken_package:Family", text=text)
    assert {"stable_diffusion", "dit"} <= set(found := installed()) and "broken" not in found
    assert load_teacher(text_pipeline).guided
    with pytest.raises(ValueError, match="'broken' of the package broken_package") as error:
        find(TEACHERS, "broken")
    assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(
        ValueError, match=r"no installed family takes a OddPipeline.*'broken' of the package broken_pack"
    ):
        family_by_class("OddPipeline")


def test_a_method_that_cannot_be_imported_is_named_and_left_out(package):
    package("broken_method", "bad = broken_method:Bad", "odd = broken_method:Odd", text="Odd = 3", group=DISTILLERS)
    assert find(DISTILLERS, "dmd").PHASES == ("fake_score", "student")
    with pytest.raises(ValueError, match="the method 'bad' of the package broken_method"):
        find(DISTILLERS, "bad")
    with pytest.raises(
        ValueError, match=r"the method 'odd' .* must name a subclass of distill\.methods\.base\.Distiller"
    ):
        find(DISTILLERS, "odd")
    with pytest.raises(ValueError, match="there is no method 'bda', did you mean 'bad'"):
        find(DISTILLERS, "bda")


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("function", "must name a subclass of teachers.core.teacher.Teacher"),
        ("OddPipeline", "must name a subclass of teachers.core.teacher.Teacher"),
        ("List", "List.pipelines must be a tuple of DiffusionPipeline classes"),
        ("Renamed", "StableDiffusionPipeline.__call__ has no argument 'text'"),
    ],
)
def test_an_entry_point_that_is_no_family_is_named_and_left_out(package, attribute, words):
    package(f"odd_{attribute.lower()}", f"odd = odd_{attribute.lower()}:{attribute}")
    assert "odd" not in installed()
    with pytest.raises(ValueError, match="the teacher family 'odd'") as error:
        find(TEACHERS, "odd")
    assert words in str(error.value)


def test_a_family_without_pipelines_is_for_use_from_python(package, text_pipeline):
    package("empty_family", "empty = empty_family:Empty")
    assert installed()["empty"].pipelines == ()
    assert family_by_class("StableDiffusionPipeline") == "stable_diffusion"
    with pytest.raises(ValueError, match=r"Empty\.pipelines must name a pipeline class"):
        find(TEACHERS, "empty").load(str(text_pipeline), torch.device("cpu"))


def test_two_packages_with_one_name_are_a_clear_error(package):
    package("first_package", "twice = first_package:Odd")
    package("second_package", "twice = second_package:Odd")
    with pytest.raises(ValueError, match="several packages register the teacher family 'twice'") as error:
        find(TEACHERS, "twice")
    assert "first_package:Odd" in str(error.value) and "second_package:Odd" in str(error.value)
    assert "twice" not in (found := installed()) and "flux" in found


def test_a_plugin_cannot_replace_a_family_or_method_of_this_project(package):
    package("replacing", "stable_diffusion = replacing:Odd")
    assert find(TEACHERS, "stable_diffusion") is StableDiffusion
    assert installed()["stable_diffusion"] is StableDiffusion
    point = EntryPoint("stable_diffusion", "replacing:Odd", GROUP)
    own = EntryPoint("stable_diffusion", "teachers.families.stable_diffusion:StableDiffusion", GROUP)
    found = load_plugins(GROUP, "teacher family", check_family, [point, own])
    assert "this project has one of that name" in found.problems["stable_diffusion"]


def test_a_plugin_does_not_take_pipelines_of_this_projects_families(package):
    package("aaa_same", "aaa = aaa_same:Same")
    assert family_by_class("StableDiffusionPipeline") == "stable_diffusion"


def test_two_families_of_one_foreign_pipeline_must_be_selected(package):
    package("odd_one", "one = odd_one:Odd")
    assert family_by_class("OddPipeline") == "one"
    assert pipeline_class("OddPipeline").__module__ == "odd_one"
    package("odd_two", "two = odd_two:Odd")
    with pytest.raises(ValueError, match=r"several families take a OddPipeline: one, two; .* teacher\.family"):
        family_by_class("OddPipeline")
    with pytest.raises(ValueError, match="several pipeline classes are called OddPipeline: odd_one"):
        pipeline_class("OddPipeline")


FEATURES = """
from teachers.families.stable_diffusion import StableDiffusion
def features(device): return None
class Odd(StableDiffusion):
    pipelines = ()
    feature_models = {"shared": features, NAME: features}
"""


def test_features_that_two_families_declare_differently_stop_nothing_else(package, logged):
    package("first_features", "first = first_features:Odd", text=FEATURES.replace("NAME", "'one'"))
    package("second_features", "second = second_features:Odd", text=FEATURES.replace("NAME", "'two'"))
    found = feature_models()
    assert "shared" not in found and {"one", "two"} <= set(found)
    assert "'shared' is left out: the families first and second declare different ones" in "\n".join(logged)


def test_a_pipeline_with_the_name_of_a_stock_one_is_refused():
    class Namesake(StableDiffusion):
        pipelines = (type("DiTPipeline", (StableDiffusionPipeline,), {}),)

    with pytest.raises(ValueError, match="must have another name than diffusers' DiTPipeline"):
        check_family(Namesake)
    check_family(DiT)


@pytest.mark.parametrize("library", ["os", "antigravity", "sys", "fewstep_unknown.network", "torch.nn", "builtins", ""])
def test_an_index_cannot_name_modules_to_import(library, text_pipeline, tmp_path):
    for file in text_pipeline.rglob("*"):
        target = tmp_path / "evil" / file.relative_to(text_pipeline)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file() and file.name != "model_index.json":
            target.symlink_to(file)
    index = json.loads((text_pipeline / "model_index.json").read_text())
    (tmp_path / "evil" / "model_index.json").write_text(json.dumps(index | {"unet": [library, "system"]}))
    for load in (load_teacher, lambda path: sketch(str(path), StableDiffusion)):
        with pytest.raises(ValueError, match="the component unet must be a class of diffusers, transformers"):
            load(tmp_path / "evil")


def test_components_of_families_and_of_stock_pipelines_are_allowed():
    index = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "image_encoder": [None, None]}
    check_components(index, [], "x")
    assert "analytic" in installed()  # which imports it
    check_components({"unet": ["teachers.families.analytic", "MixtureNetwork"]}, [Unconditional], "x")
    with pytest.raises(ValueError, match=r"got teachers\.families\.analytic\.MixtureNetwork"):
        check_components({"unet": ["teachers.families.analytic", "MixtureNetwork"]}, [DiTPipeline], "x")


def test_problems_of_a_family_are_listed():
    class Lacking(Teacher):
        pipelines = (DiTPipeline,)
        network = "unet"
        call_names: ClassVar = {"steps": "num_inference_steps"}
        feature_models: ClassVar = {"inception": None}

    problems = "; ".join(Lacking.problems())
    for words in (
        "must implement calls",
        "must have the component 'unet'",
        "call_names must have keys of prompt",
        "feature_models must have",
    ):
        assert words in problems
    assert DiffusionPipeline not in Lacking.pipelines and all(cls.problems() == [] for cls in installed().values())
