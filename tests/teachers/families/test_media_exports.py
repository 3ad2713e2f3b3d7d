"""Exported students of clips and sounds in stock diffusers pipelines."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline

from distill.methods.scm import SCM, SCMOptions
from teachers.core.cosine_path import Cosine
from teachers.core.sampling import sample
from teachers.loading.saving import save_pipeline
from tests.teachers.families.media import NAMES, prompts_of, run
from tests.teachers.families.stock import difference
from tests.teachers.families.training import perturb

every_family = pytest.mark.parametrize("name", NAMES)


def noises_of(pipe, teacher, steps, result):
    """The noise of each step; Stable Audio's solver draws that of the second from a Brownian tree."""
    if not isinstance(teacher.denoiser.path, Cosine) or steps == 1:
        return result.noises[:steps]
    return [result.noises[0], (result.outputs[0] - result.x0[0]) / pipe.scheduler.sigmas[1]]


@pytest.mark.slow
@every_family
@pytest.mark.sampled
def test_exported_latents_equal_those_of_the_student(name, load_media, tmp_path, record):
    """Saved and loaded again as a stock pipeline, at one and two steps."""
    teacher = load_media(name)
    torch.manual_seed(0)
    distiller = SCM(teacher, 2.0, SCMOptions(adaptation_steps=1, tangent_warmup=1))
    perturb(distiller.student)
    student, times = distiller.student, [distiller.student.path.t_max, 0.7]
    save_pipeline(teacher.pipeline(student, times), tmp_path)
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    cond = teacher.condition(prompts_of(teacher))
    for steps, column in ((1, "reload, 1 step"), (2, "reload, 2 steps")):
        result = run(pipe, teacher, teacher.calls(steps, times[:steps]), seed=7)
        noises = iter(noises_of(pipe, teacher, steps, result))
        with torch.no_grad():
            x0 = sample(student, next(noises), times[:steps], cond, lambda noises=noises: next(noises))
        error = difference(result.outputs[-1], x0)
        record(name, column, error)
        assert error < 1e-4
        assert len(result.outputs) == len(result.inputs) == steps  # guidance is not applied


@pytest.mark.parametrize("name", ["ACE-Step", "HunyuanVideo 1.5", "Flux.2 klein", "Qwen-Image", "Qwen-Image 2.1"])
@pytest.mark.sampled
@pytest.mark.slow
def test_guidance_is_off_in_the_files_of_an_export(name, load_media, tmp_path):
    """Called without guidance arguments, the stock pipeline evaluates the network once a step."""
    teacher = load_media(name)
    student = teacher.student()
    save_pipeline(teacher.pipeline(student, [student.path.t_max]), tmp_path)
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    call = {key: value for key, value in teacher.calls(1).items() if key not in ("guidance_scale", "true_cfg_scale")}
    result = run(pipe, teacher, call)
    assert len(result.inputs) == 1 and len(result.inputs[0]["hidden_states"]) == 2
    stored = json.loads((tmp_path / "transformer" / "config.json").read_text())
    if name == "ACE-Step":
        assert stored["is_turbo"] and not teacher.stock.transformer.config.is_turbo  # the teacher stays as it was
    elif name == "HunyuanVideo 1.5":
        guider = json.loads((tmp_path / "guider" / "guider_config.json").read_text())
        assert guider["enabled"] is False and teacher.stock.guider.config.enabled


@pytest.mark.parametrize("times", [[1.3, 0.9, 0.4], [1.2]])
@pytest.mark.parametrize("name", ["ACE-Step", "CogView4"])
@pytest.mark.slow
def test_exports_have_any_noise_levels(name, times, load_media):
    teacher = load_media(name)
    student = teacher.student()
    teacher.refit_time_embedding(student, 8.0)
    pipe = teacher.pipeline(student, times)
    pipe.set_progress_bar_config(disable=True)
    cond = teacher.condition(prompts_of(teacher))
    result = run(pipe, teacher, teacher.calls(len(times), times), seed=7)
    noises = iter(result.noises)
    with torch.no_grad():
        x0 = sample(student, next(noises), times, cond, lambda: next(noises))
    assert difference(result.outputs[-1], x0) < 1e-5
