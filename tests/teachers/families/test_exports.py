"""Exported students of every family in stock diffusers pipelines."""

import json

import pytest
import torch

from teachers.core.edm_path import Edm
from teachers.core.few_step import flow_scheduler, lcm_timesteps
from teachers.core.sampling import sample
from teachers.core.trigflow import Flow
from teachers.loading.saving import save_pipeline
from tests.teachers.families.stock import (
    NAMES,
    PROMPTS,
    difference,
    edm_noise,
    inputs_of,
    more_noise,
    noise_of,
    prompts_of,
)
from tests.teachers.standalone import run_standalone

every_family = pytest.mark.parametrize("name", NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PixArt-Sigma 512", "Stable Diffusion 3.5", "Flux.1 schnell"])
@pytest.mark.parametrize("start", ["earlier", "t_max"])
@pytest.mark.sampled
def test_exports_sample_at_any_four_angles(name, start, load):
    """Variance-preserving exports store the angles in the table, flows receive them as `sigmas` in the call."""
    teacher = load(name)
    student = teacher.student()
    first = student.path.t_max if start == "t_max" else 1.3
    times = [first, 1.0, 0.8, 0.35]
    pipe = teacher.pipeline(student, times)
    pipe.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(3)
    noise = noise_of(teacher, name, rng)
    torch.manual_seed(3)
    call = {"prompt": PROMPTS, "output_type": "pt", "generator": torch.Generator().manual_seed(3)}
    images = pipe(**call, **teacher.calls(4, times)).images
    if not name.startswith("PixArt"):
        rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        x0 = sample(student, noise, times, teacher.condition(PROMPTS), lambda: more_noise(teacher, name, rng))
        expected = (teacher.decode(x0) / 2 + 0.5).clamp(0, 1)
    assert difference(images, expected) < 1e-3


SAMPLE = """
import json, torch
from diffusers import DiffusionPipeline
images = {}
for name, job in json.load(open("jobs.json")).items():
    pipe = DiffusionPipeline.from_pretrained(job["folder"])
    pipe.set_progress_bar_config(disable=True)
    for steps, call in job["calls"].items():
        torch.manual_seed(7)  # some pipelines use it for the second step's noise
        call["generator"] = torch.Generator().manual_seed(7)
        kind = "pt" if "prompt" in call else "np"
        with torch.no_grad():
            sampled = pipe(**call, output_type=kind).images
        images[f"{name}/{steps}"] = sampled if kind == "pt" else torch.from_numpy(sampled).permute(0, 3, 1, 2)
torch.save(images, "images.pt")
"""


@pytest.fixture(scope="module")
def reloaded(request, load, trained, tmp_path_factory):
    """Images of the exported students, from stock diffusers in a process that cannot import this project."""
    work = tmp_path_factory.mktemp("exports")
    tests = [item for item in request.session.items if request.fixturename in item.fixturenames]
    jobs = {}
    for name in dict.fromkeys(item.callspec.params["name"] for item in tests):
        teacher, student = load(name), trained(name).student
        times = [student.path.t_max, 0.7]
        folder = work / name.replace(" ", "_")
        save_pipeline(teacher.pipeline(student, times), folder)
        calls = {steps: inputs_of(name) | teacher.calls(steps, times[:steps]) for steps in (1, 2)}
        if teacher.ignores_guidance and teacher.guided:
            for call in calls.values():
                del call["guidance_scale"]  # the pipeline's default must give the same images
        jobs[name] = {"folder": str(folder), "calls": calls}
    (work / "jobs.json").write_text(json.dumps(jobs))
    run_standalone(SAMPLE, folder=work)
    return torch.load(work / "images.pt", weights_only=True)


@pytest.mark.slow
@every_family
@pytest.mark.sampled
def test_exported_network_and_images_equal_the_student(name, load, trained, reloaded, record):
    """The network at the pipeline's timesteps, and the images of one and two steps."""
    teacher, student = load(name), trained(name).student
    images, times = reloaded, [student.path.t_max, 0.7]
    cond = teacher.condition(prompts_of(name))
    stock = teacher.pipeline(student, times)
    exported = stock.components.get("transformer") or stock.components["unet"]
    flow = isinstance(student.path, Flow)
    flux = name.startswith("Flux")
    timesteps = flow_scheduler(student, times, flux)[1] if flow else torch.tensor(lcm_timesteps(student.path, 2))
    edm = isinstance(student.path, Edm)
    timesteps = student.path.network_time(torch.tensor(times)) if edm else timesteps
    x = torch.randn(2, *teacher.shape)
    with torch.no_grad():
        expected = student.call(student.network, x, student.timestep_input(torch.tensor(times)), cond)
        actual = student.call(exported, x, timesteps.float(), cond)
    record(name, "export", difference(actual, expected))
    assert difference(actual, expected) < 1e-4
    for steps, column in ((1, "reload, 1 step"), (2, "reload, 2 steps")):
        rng = torch.Generator().manual_seed(7)
        noise = noise_of(teacher, name, rng)
        if name in ("Stable Diffusion 3.5", "Flux.1 dev", "Flux.1 schnell", "DiT"):
            rng = torch.Generator().manual_seed(7)  # later noise comes from the global generator with the same seed

        def next_noise(rng=rng, noise=noise):
            fresh = more_noise(teacher, name, rng)
            if not edm:
                return fresh
            return edm_noise(student, noise, sample(student, noise, times[:1], cond, next), times, fresh)

        with torch.no_grad():
            x0 = sample(student, noise, times[:steps], cond, next_noise)
            expected = (teacher.decode(x0) / 2 + 0.5).clamp(0, 1)
        error = difference(images[f"{name}/{steps}"], expected)
        record(name, column, error)
        assert error < 1e-3


@pytest.mark.parametrize("name", ["Flux.1 dev", "Stable Diffusion XL"])
@pytest.mark.slow
def test_embedded_guidance_follows_guidance_scale_of_the_call(name, load):
    """The student receives `guidance_scale` of the stock call as an input, without a second evaluation."""
    teacher = load(name)
    student = teacher.student()
    teacher.embed_guidance(student, 2.0)
    if name == "Stable Diffusion XL":
        torch.nn.init.normal_(student.network.time_embedding.cond_proj.weight)
    times = [student.path.t_max]
    pipe = teacher.pipeline(student, times)
    pipe.set_progress_bar_config(disable=True)
    noise, cond, images = noise_of(teacher, name, torch.Generator().manual_seed(3)), teacher.condition(PROMPTS), {}
    for scale in (3.0, 4.0):
        rng = torch.Generator().manual_seed(3)
        call = teacher.calls(1, times) | {"guidance_scale": scale, "generator": rng, "output_type": "pt"}
        images[scale] = pipe(PROMPTS, **call).images
        scaled = {**cond, **teacher.guidance_condition(student, torch.full((2,), scale))}
        with torch.no_grad():
            expected = (teacher.decode(sample(student, noise, times, scaled, torch.randn_like)) / 2 + 0.5).clamp(0, 1)
        assert difference(images[scale], expected) < 1e-3
    assert difference(images[3.0], images[4.0]) > 1e-2
