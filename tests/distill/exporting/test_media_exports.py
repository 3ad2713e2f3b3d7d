"""Exports of every family of clips and sounds give the student's samples, from the same noise, and say how to call."""

import functools
import inspect
import json

import pytest
import torch

from distill.checks.export_checks import check_student
from distill.config.recipe import Recipe, method_options
from distill.config.registry import TEACHERS, find
from distill.config.sections import TeacherRecipe
from distill.exporting.distill_json import describe
from distill.exporting.pipeline import export
from distill.exporting.verify import TOLERANCE
from tests.distill.exporting.test_every_export import COST
from tests.settings import in_turn
from tests.teachers.families.media import KINDS
from tests.teachers.families.stock import PROMPTS
from tests.teachers.families.training import perturb, with_precisions
from tests.teachers.tiny_media import BUILDERS

CPU = torch.device("cpu")
METHODS = {
    "dmd, 2 steps": {"name": "dmd", "timesteps": [999, 499]},
    "scm": {"name": "scm"},
    "rcm": {"name": "rcm"},
    "lcm": {"name": "lcm"},
}
# `tests.teachers.families.test_media_exports` exports every kind by sCM.
CASES = [(KINDS[0], "scm"), *in_turn(KINDS, ["dmd, 2 steps", "rcm", "lcm"])]
PRECISION = dict(with_precisions((name,) for name in KINDS))
# Their pipelines load no such file.
NO_LORA = ("Wan 2.2 A14B", "HunyuanVideo 1.5", "Stable Audio, short", "AudioLDM 2", "LongCat-Image", "Ovis-Image")
NO_LORA += ("CogView3-Plus", "NucleusMoE-Image", "Lumina-Next", "Kandinsky 3")


@pytest.fixture(scope="module")
def teacher_of(tiny_media):
    @functools.cache
    def load(name, lora=False):
        family, folder, size = tiny_media(name)
        teacher = find(TEACHERS, family).load(str(folder), CPU, PRECISION[name] if lora else torch.float32, size=size)
        if lora:
            teacher.enable_lora(4)
        return teacher

    return load


def exported(run, teacher, name, method):
    """Export an untrained, perturbed student; returns the folder."""
    family, _, size = BUILDERS[name]
    recipe = Recipe("run", TeacherRecipe(path=None, family=family, size=size), method)
    cls, options = method_options(recipe)
    torch.manual_seed(0)
    distiller = cls(teacher, 1.0, options)
    perturb(distiller.student)
    times = distiller.sampling_schedules()[0]
    record = describe(recipe, teacher, distiller, distiller.student, times, COST, "pixels")
    run.mkdir(exist_ok=True)
    return export(run, teacher, distiller.student, times, record, PROMPTS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), CASES)
@pytest.mark.sampled
def test_export_gives_the_students_samples(name, method, teacher_of, tmp_path, largest):
    teacher = teacher_of(name)
    folder = exported(tmp_path / "run", teacher, name, METHODS[method])
    stored = json.loads((folder / "distill.json").read_text())
    largest(name, method, stored["checked"])
    assert stored["checked"]["difference"] <= TOLERANCE
    assert stored["checked"]["steps"] == [entry["num_steps"] for entry in stored["calls"]]
    card = (folder / "README.md").read_text()
    first = list(inspect.signature(type(teacher.stock).__call__).parameters)[1]
    assert ("= pipe('" in card) == (first == "prompt") and ("= pipe(prompt='" in card) == (first != "prompt")
    assert f"pipeline_tag: {teacher.medium.tag}" in card and f").{teacher.medium.output}  # " in card
    if method == "rcm":  # the weights are checked again from the folder alone, at the recipe's size
        assert all(check.passed for check in check_student(folder, CPU))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.sampled
def test_export_of_an_adapter_and_its_lora_file_give_the_students_samples(name, teacher_of, tmp_path, largest):
    stored = json.loads(
        (exported(tmp_path / "run", teacher_of(name, True), name, METHODS["scm"]) / "distill.json").read_text()
    )
    largest(name, "lora", stored["checked"])
    assert stored["checked"]["difference"] <= TOLERANCE
    assert stored["checked"].get("lora_difference", 0.0) <= TOLERANCE
    assert ("lora_difference" in stored["checked"]) == (name not in NO_LORA)
