"""The size of clips and sounds, from the recipe to the pipeline's call, and what is refused in one sentence."""

import dataclasses

import diffusers
import pytest
import torch
from diffusers.utils import dummy_torch_and_torchsde_objects as without_torchsde

from distill.config.recipe import Recipe, load
from distill.config.registry import TEACHERS, find
from distill.config.saved import save
from distill.config.sections import TeacherRecipe
from distill.methods.contract import check_schedules
from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from distill.methods.scm import SCM, SCMOptions
from distill.training.memory_plan import plan
from distill.training.meta_device import build_on_meta
from distill.training.setup import load_teacher
from teachers.describe import describe
from teachers.families.latent_video import LatentVideo
from teachers.loading.registry import family_of
from teachers.loading.registry import load_teacher as load_path
from teachers.loading.sketch import sketch
from teachers.media import Audio, Video
from tests.settings import in_turn
from tests.teachers.families.media import KINDS, NAMES

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.sampled
@pytest.mark.slow
def test_sketch_equals_the_loaded_teacher_without_weights(name, tiny_media, load_media):
    family, folder, size = tiny_media(name)
    assert family_of(str(folder)) == family
    cls = find(TEACHERS, family)
    sketched, loaded = sketch(str(folder), cls, size), load_media(name)
    assert sketched.shape == loaded.shape and sketched.medium == loaded.medium
    assert isinstance(loaded.medium, cls.medium_class)
    assert sketched.denoiser.path.t_max == loaded.denoiser.path.t_max
    assert sketched.denoiser.prediction == loaded.denoiser.prediction
    assert next(sketched.denoiser.network.parameters()).is_meta
    assert [p.shape for p in sketched.denoiser.parameters()] == [p.shape for p in loaded.denoiser.parameters()]


@pytest.mark.slow
def test_defaults_are_those_of_the_pipeline_s_call(tiny_media):
    folder = tiny_media("Wan 2.1")[1]
    teacher = sketch(str(folder), find(TEACHERS, "wan"))
    assert teacher.medium == Video(frames=81, height=480, width=832, rate=16)
    assert teacher.calls(1)["max_sequence_length"] == 512
    teacher = sketch(str(tiny_media("LTX")[1]), find(TEACHERS, "ltx"))
    assert teacher.medium == Video(frames=161, height=512, width=704, rate=25)
    teacher = sketch(str(tiny_media("HunyuanVideo 1.5")[1]), find(TEACHERS, "hunyuan_video_15"))
    assert teacher.medium == Video(
        frames=121, height=480, width=848, rate=24
    ) and "guidance_scale" not in teacher.calls(1)
    teacher = sketch(str(tiny_media("ACE-Step")[1]), find(TEACHERS, "ace_step"))
    assert teacher.medium == Audio(channels=2, samples=60 * 400, rate=400)
    assert teacher.calls(1)["audio_duration"] == 60 and teacher.calls(2, [1.2, 0.5])["timesteps"]
    teacher = sketch(str(tiny_media("AudioLDM 2")[1]), find(TEACHERS, "audioldm2"))
    assert teacher.medium == Audio(channels=1, samples=128, rate=400) and "audio_length_in_s" not in teacher.calls(1)
    teacher = sketch(str(tiny_media("Stable Audio")[1]), find(TEACHERS, "stable_audio"))
    assert teacher.medium == Audio(channels=2, samples=128, rate=400)


def recipe_of(tiny_media, tmp_path, name, **size):
    folder = tiny_media(name)[1]
    teacher = TeacherRecipe(str(folder), size=size or None)
    return Recipe("run", teacher, {"name": "scm"}, output=str(tmp_path))


@pytest.mark.slow
def test_recipe_carries_the_size_to_teacher_plan_and_file(tiny_media, tmp_path):
    recipe = recipe_of(tiny_media, tmp_path, "LTX", height=32, width=32, frames=9, rate=12)
    assert load_teacher(recipe, CPU).medium == Video(frames=9, height=32, width=32, rate=12)
    larger = dataclasses.replace(recipe, teacher=dataclasses.replace(recipe.teacher, size={"height": 64, "width": 64}))
    assert plan(recipe, 1).activations < plan(larger, 1).activations
    recipe.folder.mkdir(parents=True)
    save(recipe)
    assert load(recipe.folder / "recipe.yaml").teacher == recipe.teacher
    again = load(recipe.folder / "recipe.yaml", ["teacher.size.frames=17"])
    assert again.teacher.size["frames"] == 17
    assert load_path(recipe.teacher.path, size=recipe.teacher.size).medium.frames == 9


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), in_turn(KINDS, ["dmd", "scm"]))
@pytest.mark.sampled
def test_memory_is_planned_on_the_meta_device(name, method, tiny_media):
    """Also where text encoders and masks need values, which the meta device lacks."""
    _, folder, size = tiny_media(name)
    found = plan(Recipe("run", TeacherRecipe(str(folder), size=size or None), {"name": method}), 1)
    assert 0 < found.activations < found.total


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.sampled
def test_the_condition_of_a_plan_has_the_shapes_of_a_prompt_s(name, tiny_media, load_media):
    """ACE-Step's text is shorter than the most that a plan reserves."""
    family, folder, size = tiny_media(name)
    teacher = build_on_meta(find(TEACHERS, family), str(folder), torch.float32, size)
    planned, found = teacher.meta_condition(), load_media(name).condition(["a coat"])
    assert planned.keys() == found.keys()
    for key, value in found.items():
        more = (0, 32) if family == "ace_step" else (0, 0)
        assert value.dtype == planned[key].dtype and value.ndim == planned[key].ndim
        assert all(a == b or abs(a - b) <= more[1] for a, b in zip(value.shape, planned[key].shape, strict=True))


REFUSED = {
    "unknown key": ("LTX", {"length": 9}, r"teacher.size must have the keys height, width, frames, rate .* 'length'"),
    "height": ("LTX", {"height": 40}, "teacher.size.height must be a multiple of 32, got 40"),
    "width of Wan": ("Wan 2.1", {"width": 24}, "teacher.size.width must be a multiple of 16, got 24"),
    "frames": ("Wan 2.1", {"frames": 10}, "teacher.size.frames must be 1 more than a multiple of 4, got 10"),
    "fraction": ("Wan 2.1", {"frames": 9.5}, "teacher.size.frames must be a whole number, got 9.5"),
    "zero": ("Wan 2.1", {"rate": 0}, "teacher.size.rate must be above 0 and at most 1048576, got 0"),
    "huge frames": ("Wan 2.1", {"frames": 4e14 + 1}, "teacher.size.frames must be above 0 and at most 65536, got 4"),
    "huge height": ("LTX", {"height": 1e10}, "teacher.size.height must be above 0 and at most 32768, got 1"),
    "huge seconds": ("AudioLDM 2", {"seconds": 1e30}, "teacher.size.seconds must be above 0 and at most 65536, got"),
    "too long": ("Stable Audio", {"seconds": 1.0}, "teacher.size.seconds must be at most 0.32, got 1"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.first_is_quick
def test_impossible_sizes_are_refused(case, tiny_media, tmp_path):
    name, size, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        load_teacher(recipe_of(tiny_media, tmp_path, name, **size), CPU)


@pytest.mark.slow
def test_image_families_take_no_size(tiny, tmp_path):
    family, folder = tiny("Stable Diffusion 1.5")
    with pytest.raises(ValueError, match=r"teacher.size must be empty for a teacher of the family StableDiffusion"):
        Recipe("run", TeacherRecipe(str(folder), size={"height": 512}), {"name": "scm"})
    with pytest.raises(ValueError, match=r"teacher.size must be empty"):
        find(TEACHERS, family).load(str(folder), CPU, size={"height": 512})


@pytest.mark.slow
def test_descriptions_say_the_medium_and_the_schedule(tiny_media):
    text = describe(str(tiny_media("CogVideoX 1.5")[1]))
    assert "video      9 frames of 16 x 16, 8 a second, from 4 x 4 x 2 x 2" in text and "variance preserving" in text
    text = describe(str(tiny_media("Stable Audio")[1]))
    assert "audio      0.32 s at 400 Hz, 2 channels, from 3 x 16" in text and "cosine, 1000 timesteps" in text
    _, folder, size = tiny_media("Wan 2.1")  # its rotary table is too small for the default size of the call
    assert "rectified flow" in describe(str(folder), size)
    with pytest.raises(ValueError, match="cannot be evaluated at its default size, 16 x 21 x 60 x 104"):
        describe(str(folder))


def test_a_missing_package_of_the_scheduler_is_named(tiny_media, monkeypatch):
    name = "CosineDPMSolverMultistepScheduler"
    monkeypatch.setattr(diffusers, name, getattr(without_torchsde, name))
    path = str(tiny_media("Stable Audio")[1])
    for use in (describe, lambda path: find(TEACHERS, "stable_audio").load(path, CPU)):
        with pytest.raises(ValueError, match="CosineDPMSolverMultistepScheduler needs torchsde: pip install"):
            use(path)


@pytest.mark.slow
def test_stable_audio_refuses_more_steps_than_its_scheduler_has(load_media):
    teacher = load_media("Stable Audio")
    student = teacher.student()
    with pytest.raises(ValueError, match="must have at most 2 steps, got 3"):
        teacher.pipeline(student, [student.path.t_max, 1.0, 0.5])


@pytest.mark.parametrize("name", ["Wan 2.1", "LTX"])
@pytest.mark.first_is_quick
def test_noise_levels_that_the_call_cannot_take_are_refused_before_training(name, load_media):
    teacher = load_media(name)
    message = r"must have one or two steps from pure noise, .* got the timesteps \[900, 499\]; begin .* with 1000"
    with pytest.raises(ValueError, match=message):
        check_schedules(DMD(teacher, 1.0, DMDOptions(timesteps=(900, 499))))
    distiller = DMD(teacher, 1.0, DMDOptions(timesteps=(999, 499)))
    check_schedules(distiller)
    assert distiller.times[0] == teacher.denoiser.path.t_max  # the last timestep of a flow is pure noise there
    check_schedules(SCM(teacher, 1.0, SCMOptions()))
    with pytest.raises(ValueError, match="one or two steps"):
        teacher.pipeline(teacher.student(), [teacher.denoiser.path.t_max, 1.0, 0.5])


def test_wan_s_transformers_must_fit_its_boundary(tiny_media):
    family, folder, size = tiny_media("Wan 2.1")
    pipe = diffusers.WanPipeline.from_pretrained(folder)
    pipe.register_to_config(boundary_ratio=0.9)
    with pytest.raises(
        ValueError, match=r"two transformers if it has a boundary_ratio, else one, got transformer with"
    ):
        find(TEACHERS, family).wrap(pipe, size=size)


@pytest.mark.slow
def test_sizes_are_part_of_the_cache_key(tiny_media):
    from teachers.loading.contents import settings

    family, folder, size = tiny_media("Wan 2.1")
    kinds = [find(TEACHERS, family).load(str(folder), CPU, size=size | more) for more in ({}, {"rate": 8})]
    assert all(isinstance(teacher, LatentVideo) for teacher in kinds)
    assert settings(kinds[0]) != settings(kinds[1])
