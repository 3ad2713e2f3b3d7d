"""Every family through the real methods and against the stock pipeline that it wraps; the run ends with the table."""

import functools
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill.config.registry import TEACHERS, find
from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.methods.dmd import DMD, DMDOptions
from distill.methods.scm import SCM, SCMOptions
from teachers.core.few_step import flow_scheduler, grid
from teachers.core.sampling import sample
from teachers.core.teacher import save_pipeline
from teachers.core.trigflow import Flow, integrate

CPU = torch.device("cpu")
NAMES = [
    "Stable Diffusion 1.5",
    "Stable Diffusion 2.1 (v, zero SNR)",
    "Stable Diffusion XL",
    "Stable Diffusion 3.5",
    "Flux.1 dev",
    "Flux.1 schnell",
    "PixArt-Sigma 512",
    "PixArt-Alpha 1024",
    "Sana",
    "DiT",
    "unconditional UNet",
]
PROMPTS = ["a photo of a coat", "an ankle boot"]
every_family = pytest.mark.parametrize("name", NAMES)


def prompts_of(name):
    return ["goldfish", "7"] if name == "DiT" else PROMPTS


def inputs_of(name):
    """What a stock call takes in place of prompts."""
    if name == "DiT":
        return {"class_labels": [1, 7]}
    return {"batch_size": 2} if name == "unconditional UNet" else {"prompt": PROMPTS}


@pytest.fixture(scope="module")
def load(tiny):
    """`load(name)` -> the teacher, loaded from its folder once."""

    @functools.cache
    def teacher(name):
        family, folder = tiny(name)
        return find(TEACHERS, family).load(str(folder), CPU)

    return teacher


@dataclass
class Run:
    """One stock call: what its network was fed first, its native sample then, the end, and the angles on the way."""

    fed: dict[str, Any]
    first: torch.Tensor
    last: torch.Tensor
    angles: list[float]


def unpacked(x, shape):
    """Flux's tokens (B, H W / 4, 4 C) as latents; anything else as it is."""
    if x.ndim != 3:
        return x
    channels, height, width = shape
    x = x.reshape(len(x), height // 2, width // 2, channels, 2, 2)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(len(x), channels, height, width)


def stock_run(teacher, folder, name, guidance) -> Run:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    network = pipe.components.get("transformer") or pipe.components["unet"]
    calls, ends, step = [], [], pipe.scheduler.step

    def spy(output, t, x, *args, **kwargs):
        result = step(output, t, x, *args, **kwargs)
        ends.append(result[0])
        return result

    pipe.scheduler.step = spy
    network.register_forward_hook(lambda m, args, kwargs, out: calls.append((args, kwargs)), with_kwargs=True)
    usual = teacher.usual_call(4, guidance)
    latent = {} if name in ("DiT", "unconditional UNet") else {"output_type": "latent"}
    pipe(**inputs_of(name), **usual, **latent, generator=torch.Generator().manual_seed(0))
    args, kwargs = calls[0]
    native = args[0] if args else kwargs["hidden_states"]
    path, scheduler = teacher.denoiser.path, pipe.scheduler
    if isinstance(path, Flow):
        angles = path.angle(scheduler.sigmas.double() * 1000).tolist()
    else:
        end = 0.0 if scheduler.config.get("set_alpha_to_one", True) else path.t_min
        angles = [*path.angle(scheduler.timesteps.double()).tolist(), end]
    last = ends[-1][:2]  # DiT carries both halves along
    fed = kwargs | (kwargs.get("added_cond_kwargs") or {})
    return Run(fed, unpacked(native[:2], teacher.shape), unpacked(last, teacher.shape), angles)


def noise_of(teacher, name, draw):
    channels, height, width = teacher.shape
    return torch.randn(2, channels, height, width, generator=draw)


def more_noise(teacher, name, draw):
    """Re-noising's draw, which Flux makes on packed latents."""
    channels, height, width = teacher.shape
    if name.startswith("Flux"):
        return unpacked(torch.randn(2, height * width // 4, channels * 4, generator=draw), teacher.shape)
    return noise_of(teacher, name, draw)


def difference(got, wanted):
    """Largest difference over the standard deviation of what is wanted."""
    return ((got - wanted).abs().max() / wanted.std().clamp_min(1e-9)).item()


@every_family
def test_the_stock_pipeline_is_followed(name, load, tiny, record, monkeypatch):
    """Condition, schedule and guidance: our ODE in canonical time ends where the pipeline's own solver ends."""
    teacher, (_, folder) = load(name), tiny(name)
    if name == "Sana":  # its published solver truncates the timesteps that it tells the network
        clock = teacher.denoiser.clock
        monkeypatch.setattr(teacher.denoiser, "clock", lambda t: (clock(t) + 1e-3).floor())
    cond = teacher.condition(prompts_of(name))
    for column, guidance in (("wrap", 1.0), ("guidance", 3.0)):
        if column == "guidance" and not teacher.guided:
            continue
        run = stock_run(teacher, folder, name, guidance)
        start = run.first / teacher.denoiser.path.scale(torch.tensor([run.angles[0]])).item()
        with torch.no_grad():
            end = integrate(
                lambda x, t, guidance=guidance: teacher.velocity(x, t.float(), cond, guidance), start, run.angles
            )
        error = difference(end, run.last)
        record(name, column, error)
        assert error < 1e-4
    worst = 0.0
    for key, ours in cond.items():
        fed = run.fed[key]
        if len(fed) == 2:  # Flux: one evaluation, told its guidance
            worst = max(worst, (ours - fed).abs().max().item())
            continue
        first, second = fed.float().chunk(2)
        empty, full = (second, first) if name == "DiT" else (first, second)
        worst = max(worst, (ours - full).abs().max().item())
        worst = max(worst, (teacher.null_condition(cond)[key] - empty).abs().max().item())
    record(name, "condition", worst)
    assert worst < 1e-5


def test_what_the_network_is_fed_beside_the_condition_is_known(load, tiny):
    """No family leaves out an argument that the pipeline gives: the sample, the time, the condition, and no more."""
    places = {"hidden_states", "timestep", "return_dict", "img_ids", "txt_ids", "added_cond_kwargs"}
    for name in NAMES[:-1]:
        teacher, (_, folder) = load(name), tiny(name)
        fed = stock_run(teacher, folder, name, 3.0).fed
        rest = {key for key, value in fed.items() if value is not None and key not in places}
        told = {"guidance"} if name == "Flux.1 dev" else set()
        assert rest - {"joint_attention_kwargs"} == set(teacher.condition(prompts_of(name))) | told, name


def test_latents_round_trip_as_the_autoencoder_does(load):
    """Whatever a family's scale, shift, means and deviations: decode(encode(x)) is the autoencoder's own round trip."""
    for name in NAMES[:-1]:
        teacher = load(name)
        vae = teacher.stock.vae
        images = torch.rand(2, 3, 16, 16) * 2 - 1
        with torch.no_grad():
            code = vae.encode(images)
            wanted = vae.decode(code.latent if name == "Sana" else code.latent_dist.mean).sample
            assert torch.allclose(teacher.decode(teacher.encode(images)), wanted, atol=1e-5), name


def test_teachers_in_half_precision_speak_float32(tiny):
    """bfloat16 weights take our float32 samples, masks and sizes, and give nearly the same velocities."""
    for name in NAMES:
        family, folder = tiny(name)
        coarse, fine = (
            find(TEACHERS, family).load(str(folder), CPU, dtype) for dtype in (torch.bfloat16, torch.float32)
        )
        x, t, cond = torch.randn(2, *fine.shape), torch.tensor([0.5, 1.0]), fine.condition(prompts_of(name))
        with torch.no_grad():
            got, wanted = (teacher.velocity(x, t, cond, 2.0) for teacher in (coarse, fine))
        assert got.dtype == torch.float32
        assert (got - wanted).abs().mean() < 0.1 * wanted.abs().mean(), name


@pytest.mark.parametrize("name", ["PixArt-Sigma 512", "Stable Diffusion 3.5", "Flux.1 schnell"])
@pytest.mark.parametrize("starts", ["at the end of time", "earlier"])
def test_four_steps(name, starts, load):
    """Any falling angles: tables carry them, flows take them as `sigmas` in the call."""
    teacher = load(name)
    student = teacher.student()
    first = student.path.t_max if starts == "at the end of time" else 1.3
    times = [first, 1.0, 0.8, 0.35]
    pipe = teacher.pipeline(student, times)
    pipe.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(3)
    noise = noise_of(teacher, name, draw)
    torch.manual_seed(3)
    call = {"prompt": PROMPTS, "output_type": "pt", "generator": torch.Generator().manual_seed(3)}
    images = pipe(**call, **teacher.calls(4, times)).images
    if not name.startswith("PixArt"):
        draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        x0 = sample(student, noise, times, teacher.condition(PROMPTS), lambda: more_noise(teacher, name, draw))
        wanted = (teacher.decode(x0) / 2 + 0.5).clamp(0, 1)
    assert difference(images, wanted) < 1e-3


def batch_of(teacher, name, seed=0):
    latents = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(seed))
    return Batch(teacher.condition(prompts_of(name)), BatchRandom((seed,), 0, 2, 2, CPU), latents)


def step(distiller, phase, teacher, name, number=0):
    """One optimizer step of one turn; every weight of its networks that matters moves, and stays finite."""
    parameters = [p for module in distiller.networks()[phase] for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0)
    before = [p.detach().clone() for p in parameters]
    loss, _ = distiller(phase, batch_of(teacher, name, number), number)
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p).all() for p in parameters)
    moved = sum(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert moved > 0.6 * len(parameters)


@every_family
def test_dmd(name, load, record):
    """With fake score = teacher DMD's gradient is nothing; then one step of each turn with guidance."""
    teacher = load(name)
    guidance = 3.5 if name == "Flux.1 dev" else 1.0  # what a student of Flux is told
    torch.manual_seed(0)
    distiller = DMD(teacher, guidance, DMDOptions())
    batch = batch_of(teacher, name)
    with torch.no_grad():
        x = distiller.generate(batch)
    gradient, _ = distiller.gradient(x, x + 0.5 * torch.randn_like(x), torch.tensor([0.4, 1.2]), batch.cond)
    record(name, "DMD step", gradient.abs().max().item())
    assert gradient.abs().max() < 1e-4
    distiller = DMD(teacher, 2.0, DMDOptions())
    for phase in ("fake_score", "student"):
        step(distiller, phase, teacher, name)


@pytest.fixture(scope="module")
def trained(load):
    """`trained(name)` -> an sCM distiller after a step of adaptation and one with its tangent, on the gentle clock."""

    @functools.cache
    def train(name):
        torch.manual_seed(0)
        teacher = load(name)
        distiller = SCM(teacher, 2.0, SCMOptions(adaptation_steps=1, tangent_warmup=1))
        for number in (0, 1):
            step(distiller, "student", teacher, name, number)
        return distiller

    return train


def forward_mode(function, primals, tangents):
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
        return torch.func.jvp(function, primals, tangents)


@every_family
def test_scm(name, load, trained, record):
    """Two steps; and the target that its tangent gives against one from torch's own forward mode."""
    teacher, distiller = load(name), trained(name)
    batch = batch_of(teacher, name, 5)
    t = torch.tensor([0.5, 1.1])
    x = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(1))
    drift = teacher.velocity(x, t, batch.cond, 2.0)
    ours, _ = distiller.target(x, t, drift, batch.cond, 1.0)
    distiller.tangent, kept = forward_mode, distiller.tangent
    wanted, _ = distiller.target(x, t, drift, batch.cond, 1.0)
    distiller.tangent = kept
    error = difference(ours, wanted)
    record(name, "sCM step", error)
    assert error < 1e-3


LOAD = """
import sys
for name in ("distill", "teachers", "eval"):
    sys.modules[name] = None  # an import of ours now fails
import inspect, json, torch
from diffusers import DiffusionPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel
images = {}
for name, job in json.load(open("jobs.json")).items():
    pipe = DiffusionPipeline.from_pretrained(job["folder"])
    pipe.set_progress_bar_config(disable=True)
    for steps, call in job["calls"].items():
        torch.manual_seed(7)  # some pipelines leave the generator out of the second step's noise
        call["generator"] = torch.Generator().manual_seed(7)
        kind = "pt" if "prompt" in call else "np"
        with torch.no_grad():
            made = pipe(**call, output_type=kind).images
        images[f"{name}/{steps}"] = made if kind == "pt" else torch.from_numpy(made).permute(0, 3, 1, 2)
torch.save(images, "images.pt")
"""


@pytest.fixture(scope="module")
def reloaded(load, trained, tmp_path_factory):
    """Every student exported, then drawn by stock diffusers in one process that cannot import this project."""
    work = tmp_path_factory.mktemp("exports")
    jobs = {}
    for name in NAMES:
        teacher, student = load(name), trained(name).student
        times = [student.path.t_max, 0.7]
        folder = work / name.replace(" ", "_")
        save_pipeline(teacher.pipeline(student, times), folder)
        calls = {steps: inputs_of(name) | teacher.calls(steps, times[:steps]) for steps in (1, 2)}
        if teacher.ignores_guidance and teacher.guided:
            for call in calls.values():
                del call["guidance_scale"]  # the pipeline's default has to be as good
        jobs[name] = {"folder": str(folder), "calls": calls}
    (work / "jobs.json").write_text(json.dumps(jobs))
    (work / "load.py").write_text(LOAD)
    done = subprocess.run([sys.executable, "load.py"], cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(work / "images.pt", weights_only=True)


@every_family
def test_export(name, load, trained, reloaded, record):
    """The exported network told the pipeline's timesteps is the student; stock images of one and two steps are ours."""
    teacher, student = load(name), trained(name).student
    images, times = reloaded, [student.path.t_max, 0.7]
    cond = teacher.condition(prompts_of(name))
    stock = teacher.pipeline(student, times)
    exported = stock.components.get("transformer") or stock.components["unet"]
    flow = isinstance(student.path, Flow)
    told = flow_scheduler(student, times, name.startswith("Flux"))[1] if flow else torch.tensor(grid(student.path, 2))
    x = torch.randn(2, *teacher.shape)
    with torch.no_grad():
        wanted = student.call(student.network, x, student.timestep_input(torch.tensor(times)), cond)
        got = student.call(exported, x, told.float(), cond)
    record(name, "export", difference(got, wanted))
    assert difference(got, wanted) < 1e-4
    for steps, column in ((1, "reload, 1 step"), (2, "reload, 2 steps")):
        draw = torch.Generator().manual_seed(7)
        noise = noise_of(teacher, name, draw)
        if name in ("Stable Diffusion 3.5", "Flux.1 dev", "Flux.1 schnell", "DiT"):
            draw = torch.Generator().manual_seed(7)  # re-noising draws from torch's own generator, seeded alike

        def again(draw=draw):
            return more_noise(teacher, name, draw)

        with torch.no_grad():
            x0 = sample(student, noise, times[:steps], cond, again)
            wanted = (teacher.decode(x0) / 2 + 0.5).clamp(0, 1)
        error = difference(images[f"{name}/{steps}"], wanted)
        record(name, column, error)
        assert error < 1e-3


@pytest.mark.parametrize("name", ["Stable Diffusion XL", "Flux.1 dev"])
def test_a_student_that_is_told_its_guidance_obeys_the_call(name, load):
    """`guidance_scale` of the stock call reaches the student as its own input, without a second evaluation."""
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
        draw = torch.Generator().manual_seed(3)
        call = teacher.calls(1, times) | {"guidance_scale": scale, "generator": draw, "output_type": "pt"}
        images[scale] = pipe(PROMPTS, **call).images
        told = {**cond, **teacher.guidance_condition(student, torch.full((2,), scale))}
        with torch.no_grad():
            wanted = (teacher.decode(sample(student, noise, times, told, torch.randn_like)) / 2 + 0.5).clamp(0, 1)
        assert difference(images[scale], wanted) < 1e-3
    assert difference(images[3.0], images[4.0]) > 1e-2
