"""Property test of exports: the student's images, from the same noise, for every family, kind and number of steps.

Every family is exported as a student of two steps by one of the two kinds of methods, and as one other student; the
first family as every student. `tests.teachers.families` exports every network by sCM.
"""

import json

import pytest
import torch

from distill.config.recipe import Recipe, method_options
from distill.config.registry import TEACHERS, find
from distill.config.sections import ExportRecipe, TeacherRecipe
from distill.exporting.distill_json import describe
from distill.exporting.pipeline import export
from distill.exporting.verify import TOLERANCE
from tests.settings import in_turn
from tests.teachers.families.stock import prompts_of
from tests.teachers.families.training import perturb, with_precisions
from tests.teachers.families.variants import VARIANTS

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
COST = {"exported_step": 0, "steps": 0, "seconds": 0.0, "samples": 0, "device": "cpu"}
KINDS = {
    "dmd, 2 steps": {"name": "dmd", "timesteps": [999, 499]},
    "scm": {"name": "scm"},
}
OTHERS = {
    "dmd": {"name": "dmd"},
    "dmd, 1 early step": {"name": "dmd", "timesteps": [399]},
    "dmd, 4 steps": {"name": "dmd", "timesteps": [999, 749, 499, 249]},
    "lcm": {"name": "lcm"},
    "scm, native time": {"name": "scm", "adaptation_steps": 0},
    "rcm": {"name": "rcm"},
    "sid": {"name": "sid"},
    "f_distill": {"name": "f_distill"},
    "lcm, 4 steps": {"name": "lcm", "timesteps": [999, 749, 499, 249]},
}
METHODS = KINDS | OTHERS
EDM = ("Stable Diffusion, EDM", "Playground 2.5", "CosXL", "EDM, CIFAR-10", "EDM, ImageNet-64")  # with one or two steps
CASES = in_turn(VARIANTS, list(KINDS))
CASES += [case for case in in_turn(VARIANTS, list(OTHERS)) if not (case[0] in EDM and "4 steps" in case[1])]


def exported(run, teacher, name, method, guidance=1.0, size=0.02, schedule="native"):
    """Export an untrained, perturbed student; returns the contents of distill.json."""
    source = TeacherRecipe(path=None, family=VARIANTS[name][0], guidance=guidance)
    recipe = Recipe("run", source, method, export=ExportRecipe(schedule))
    cls, options = method_options(recipe)
    torch.manual_seed(0)
    distiller = cls(teacher, guidance, options)
    perturb(distiller.student, size)
    times = distiller.sampling_schedules()[0]
    record = describe(recipe, teacher, distiller, distiller.student, times, COST, "pixels")
    run.mkdir(exist_ok=True)
    folder = export(run, teacher, distiller.student, times, record, prompts_of(name))
    return json.loads((folder / "distill.json").read_text())


@pytest.mark.parametrize(("name", "method"), CASES)
@pytest.mark.sampled
def test_export_gives_the_students_images(name, method, teacher_of, tmp_path, largest):
    stored = exported(tmp_path / "run", teacher_of(name), name, METHODS[method])
    largest(name, method, stored["checked"])
    assert stored["checked"]["difference"] <= TOLERANCE
    assert stored["checked"]["steps"] == [entry["num_steps"] for entry in stored["calls"]]


@pytest.mark.parametrize("name", EDM)
def test_more_steps_than_a_scheduler_has_are_refused(name, teacher_of):
    teacher = teacher_of(name)
    with pytest.raises(ValueError, match="a student with EDM's schedule must have at most 2 steps, got 4"):
        teacher.pipeline(teacher.student(), [1.5, 1.2, 0.9, 0.4])


ADAPTED = [name for name, (family, _) in VARIANTS.items() if family not in ("unconditional", "edm")]


@pytest.mark.parametrize(
    ("name", "method", "dtype"),
    [
        *with_precisions(in_turn(ADAPTED, list(KINDS))),
        ("Stable Diffusion 1.5", "scm", torch.float16),
    ],
    ids=str,
)
@pytest.mark.sampled
def test_export_of_an_adapter_and_its_lora_file_give_the_students_images(
    name, method, dtype, folder_of, tmp_path, largest
):
    family, folder = folder_of(name)
    teacher = find(TEACHERS, family).load(str(folder), CPU, dtype)
    teacher.enable_lora(4)
    stored = exported(tmp_path / "run", teacher, name, METHODS[method])
    largest(name, f"lora, {method}, {str(dtype)[6:]}", stored["checked"])
    assert stored["checked"]["difference"] <= TOLERANCE
    assert stored["checked"].get("lora_difference", 0.0) <= TOLERANCE


@pytest.mark.parametrize("name", ["Stable Diffusion 1.5", "Stable Diffusion XL", "Playground 2.5", "Flux.1 dev"])
def test_every_embedded_guidance_scale_is_checked(name, teacher_of, tmp_path, largest):
    method = {"name": "scm", "guidances": [1.0, 3.0, 5.0]}
    stored = exported(tmp_path / "run", teacher_of(name), name, method, guidance=3.0)
    largest(name, "guidances", stored["checked"])
    assert stored["checked"]["difference"] <= TOLERANCE
