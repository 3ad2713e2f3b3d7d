"""`export.schedule`: native exports keep the teacher's table and timesteps; bent exports are those of before."""

import dataclasses

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline

from distill.config.recipe import Recipe, load, method_options
from distill.config.sections import ExportRecipe, TeacherRecipe
from distill.exporting.distill_json import describe
from distill.exporting.usage import usage_section
from distill.training.export_record import export_key
from teachers.core.native_schedule import is_native
from tests.distill.exporting.test_every_export import COST, METHODS, exported

SD = "Stable Diffusion 1.5"


def record_of(teacher, method, schedule="native"):
    """The record of an untrained student."""
    recipe = Recipe("run", TeacherRecipe(path=None, family="stable_diffusion"), method, export=ExportRecipe(schedule))
    cls, options = method_options(recipe)
    distiller = cls(teacher, 1.0, options)
    times = distiller.sampling_schedules()[0]
    return describe(recipe, teacher, distiller, distiller.student, times, COST, "pixels")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dmd", "dmd, 2 steps", "dmd, 1 early step", "scm"])
def test_native_exports_have_the_teachers_noise_levels(method, teacher_of, tmp_path):
    teacher = teacher_of(SD)
    record = exported(tmp_path / "run", teacher, SD, METHODS[method])
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    table = teacher.stock.scheduler.alphas_cumprod
    assert torch.equal(pipe.scheduler.alphas_cumprod, table)
    assert record["schedule"] == record["export"] == "native"
    for entry in record["calls"]:
        call = {key: value for key, value in entry["call"].items() if key in ("timesteps", "num_inference_steps")}
        pipe.scheduler.set_timesteps(**({"timesteps": call["timesteps"]} if "timesteps" in call else call))
        assert pipe.scheduler.timesteps.tolist() == record["timesteps"][: entry["num_steps"]]


@pytest.mark.slow
def test_a_bent_export_has_the_students_angles_in_its_table(teacher_of):
    teacher = teacher_of(SD)
    native, bent = (record_of(teacher, METHODS["scm"], schedule) for schedule in ("native", "bent"))
    assert bent["schedule"] == "bent" and "timesteps" not in bent
    assert bent["times"] == [teacher.denoiser.path.t_max, 0.4]
    assert bent["calls"][-1]["call"] == {"num_inference_steps": 2, "guidance_scale": 1.0}
    assert native["times"] != bent["times"] and abs(native["times"][1] - 0.4) < 5e-3
    teacher.export_schedule = "native"


def test_candidates_are_native_and_include_two_steps_by_number_alone(teacher_of):
    teacher = teacher_of(SD)
    cls, options = method_options(Recipe("run", TeacherRecipe(path=None, family="stable_diffusion"), METHODS["scm"]))
    distiller = cls(teacher, 1.0, options)
    found = teacher.native_candidates(distiller.student, distiller.sampling_schedules())
    assert all(is_native(distiller.student, times) for times in found)
    assert min(times[1] for times in found) < 0.11
    timesteps = [teacher.native_timesteps(distiller.student, times) for times in found]
    assert [timesteps[0][0], (timesteps[0][0] - 1) // 2] == timesteps[-1]
    assert len({tuple(steps) for steps in timesteps}) == len(timesteps)


@pytest.mark.slow
def test_a_pipeline_without_timesteps_takes_two_steps_by_number_alone(teacher_of):
    teacher = teacher_of("DiT")
    cls, options = method_options(Recipe("run", TeacherRecipe(path=None, family="dit"), METHODS["scm"]))
    student = cls(teacher, 1.0, options).student
    times = teacher.native_times(student, [student.path.t_max, 0.3])
    first, second = teacher.native_timesteps(student, times)
    assert second == (first - 1) // 2 and teacher.timesteps_call(student, times) == {}


def test_the_choice_is_part_of_the_exports_record_and_not_of_the_runs():
    recipe = Recipe("run", TeacherRecipe(path=None, family="stable_diffusion"), {"name": "dmd"})
    bent = dataclasses.replace(recipe, export=ExportRecipe("bent"))
    assert export_key(recipe) != export_key(bent)


def test_the_recipe_key_is_checked(tmp_path):
    assert load("pocket/dmd").export.schedule == "native"
    assert load("pocket/dmd", ["export.schedule=bent"]).export.schedule == "bent"
    with pytest.raises(ValueError, match=r"export\.schedule must be one of native, bent"):
        load("pocket/dmd", ["export.schedule=curved"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dmd", "scm"])
def test_the_card_says_what_works_with_other_tools(method, teacher_of, tmp_path):
    record = exported(tmp_path / "run", teacher_of(SD), SD, METHODS[method])
    card = (tmp_path / "run" / "pipeline" / "README.md").read_text()
    for text in ("ControlNet", "IP-Adapter", "Inpainting", "Image-to-image", "single-file", "LCMScheduler.from_config"):
        assert text in card
    assert str(record["timesteps"][0]) in card and card.startswith("---\nlibrary_name: diffusers")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["inference"]["parameters"] == record["calls"][0]["call"]
    assert ("with n from 1 to" in card) == (method == "scm")
    assert usage_section({**record, "medium": {}}, DiffusionPipeline) == ""
