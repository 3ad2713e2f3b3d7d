"""Every family with the real methods and against its stock pipeline. A table of differences is printed at the end."""

import functools
import json
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
from teachers.core.few_step import flow_scheduler, lcm_timesteps
from teachers.core.sampling import sample
from teachers.core.teacher import save_pipeline
from teachers.core.trigflow import Flow, integrate
from tests.teachers.standalone import run_standalone

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
    """The arguments of a stock pipeline that select what is sampled."""
    if name == "DiT":
        return {"class_labels": [1, 7]}
    return {"batch_size": 2} if name == "unconditional UNet" else {"prompt": PROMPTS}


@pytest.fixture(scope="module")
def load(tiny):
    """Function load(name) -> the teacher; each is loaded once."""

    @functools.cache
    def teacher(name):
        family, folder = tiny(name)
        return find(TEACHERS, family).load(str(folder), CPU)

    return teacher


@dataclass
class Run:
    """One call of a stock pipeline.

    Attributes:
        inputs: Keyword arguments of the first network call.
        first: Native sample of the first network call.
        last: Final latents.
        angles: Angles of all steps, and of the end.
    """

    inputs: dict[str, Any]
    first: torch.Tensor
    last: torch.Tensor
    angles: list[float]


def unpacked(x, shape):
    """Flux's tokens (B, H W / 4, 4 C) as latents; other latents unchanged."""
    if x.ndim != 3:
        return x
    channels, height, width = shape
    x = x.reshape(len(x), height // 2, width // 2, channels, 2, 2)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(len(x), channels, height, width)


def stock_run(teacher, folder, name, guidance) -> Run:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    network = pipe.components.get("transformer") or pipe.components["unet"]
    calls, outputs, step = [], [], pipe.scheduler.step

    def recording_step(output, t, x, *args, **kwargs):
        result = step(output, t, x, *args, **kwargs)
        outputs.append(result[0])
        return result

    pipe.scheduler.step = recording_step
    network.register_forward_hook(lambda m, args, kwargs, out: calls.append((args, kwargs)), with_kwargs=True)
    call = teacher.usual_call(4, guidance)
    latent = {} if name in ("DiT", "unconditional UNet") else {"output_type": "latent"}
    pipe(**inputs_of(name), **call, **latent, generator=torch.Generator().manual_seed(0))
    args, kwargs = calls[0]
    native = args[0] if args else kwargs["hidden_states"]
    path, scheduler = teacher.denoiser.path, pipe.scheduler
    if isinstance(path, Flow):
        angles = path.angle(scheduler.sigmas.double() * 1000).tolist()
    else:
        end = 0.0 if scheduler.config.get("set_alpha_to_one", True) else path.t_min
        angles = [*path.angle(scheduler.timesteps.double()).tolist(), end]
    last = outputs[-1][:2]  # DiT keeps both halves of the guided batch
    inputs = kwargs | (kwargs.get("added_cond_kwargs") or {})
    return Run(inputs, unpacked(native[:2], teacher.shape), unpacked(last, teacher.shape), angles)


def noise_of(teacher, name, rng):
    channels, height, width = teacher.shape
    return torch.randn(2, channels, height, width, generator=rng)


def more_noise(teacher, name, rng):
    """Noise of a later step; Flux samples it as packed latents."""
    channels, height, width = teacher.shape
    if name.startswith("Flux"):
        return unpacked(torch.randn(2, height * width // 4, channels * 4, generator=rng), teacher.shape)
    return noise_of(teacher, name, rng)


def difference(actual, expected):
    """Largest difference in standard deviations of the expected values."""
    return ((actual - expected).abs().max() / expected.std().clamp_min(1e-9)).item()


@every_family
def test_ode_ends_where_the_stock_solver_ends(name, load, tiny, record, monkeypatch):
    """Condition, schedule and guidance equal those of the stock pipeline."""
    teacher, (_, folder) = load(name), tiny(name)
    if name == "Sana":  # its published solver truncates the timesteps
        exact = teacher.denoiser.timestep_input
        monkeypatch.setattr(teacher.denoiser, "timestep_input", lambda t: (exact(t) + 1e-3).floor())
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
        stock = run.inputs[key]
        if len(stock) == 2:  # Flux embeds the guidance scale: no second half
            worst = max(worst, (ours - stock).abs().max().item())
            continue
        first, second = stock.float().chunk(2)
        without, with_prompt = (second, first) if name == "DiT" else (first, second)
        worst = max(worst, (ours - with_prompt).abs().max().item())
        worst = max(worst, (teacher.null_condition(cond)[key] - without).abs().max().item())
    record(name, "condition", worst)
    assert worst < 1e-5


def test_condition_has_every_argument_of_the_stock_network_call(load, tiny):
    """The stock pipeline passes the sample, the timestep and the condition, and nothing else."""
    common = {"hidden_states", "timestep", "return_dict", "img_ids", "txt_ids", "added_cond_kwargs"}
    for name in NAMES[:-1]:
        teacher, (_, folder) = load(name), tiny(name)
        inputs = stock_run(teacher, folder, name, 3.0).inputs
        rest = {key for key, value in inputs.items() if value is not None and key not in common}
        scale = {"guidance"} if name == "Flux.1 dev" else set()
        assert rest - {"joint_attention_kwargs"} == set(teacher.condition(prompts_of(name))) | scale, name


def test_decode_of_encode_equals_the_autoencoder(load):
    """For every scale, shift, mean and standard deviation of latents."""
    for name in NAMES[:-1]:
        teacher = load(name)
        vae = teacher.stock.vae
        images = torch.rand(2, 3, 16, 16) * 2 - 1
        with torch.no_grad():
            code = vae.encode(images)
            expected = vae.decode(code.latent if name == "Sana" else code.latent_dist.mean).sample
            assert torch.allclose(teacher.decode(teacher.encode(images)), expected, atol=1e-5), name


def test_bfloat16_teachers_return_nearly_equal_velocities_in_float32(tiny):
    for name in NAMES:
        family, folder = tiny(name)
        half, full = (find(TEACHERS, family).load(str(folder), CPU, dtype) for dtype in (torch.bfloat16, torch.float32))
        x, t, cond = torch.randn(2, *full.shape), torch.tensor([0.5, 1.0]), full.condition(prompts_of(name))
        with torch.no_grad():
            actual, expected = (teacher.velocity(x, t, cond, 2.0) for teacher in (half, full))
        assert actual.dtype == torch.float32
        assert (actual - expected).abs().mean() < 0.1 * expected.abs().mean(), name


@pytest.mark.parametrize("name", ["PixArt-Sigma 512", "Stable Diffusion 3.5", "Flux.1 schnell"])
@pytest.mark.parametrize("start", ["t_max", "earlier"])
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


def batch_of(teacher, name, seed=0):
    latents = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(seed))
    return Batch(teacher.condition(prompts_of(name)), BatchRandom((seed,), 0, 2, 2, CPU), latents)


def step(distiller, phase, teacher, name, number=0):
    """One optimizer step of one phase; most weights change, and all stay finite."""
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
def test_dmd_gradient_is_zero_before_training_and_each_phase_trains(name, load, record):
    """The fake score equals the teacher at first, so DMD's gradient is zero."""
    teacher = load(name)
    guidance = 3.5 if name == "Flux.1 dev" else 1.0  # a student of Flux receives the default guidance scale
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
    """Function trained(name) -> an sCM distiller after one step of adaptation and one step with its tangent."""

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
def test_scm_target_equals_that_of_torch_func_jvp(name, load, trained, record):
    teacher, distiller = load(name), trained(name)
    batch = batch_of(teacher, name, 5)
    t = torch.tensor([0.5, 1.1])
    x = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(1))
    drift = teacher.velocity(x, t, batch.cond, 2.0)
    ours, _ = distiller.target(x, t, drift, batch.cond, 1.0)
    distiller.tangent, tangent = forward_mode, distiller.tangent
    expected, _ = distiller.target(x, t, drift, batch.cond, 1.0)
    distiller.tangent = tangent
    error = difference(ours, expected)
    record(name, "sCM step", error)
    assert error < 1e-3


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
def reloaded(load, trained, tmp_path_factory):
    """Images of every exported student, from stock diffusers in a process that cannot import this project."""
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
                del call["guidance_scale"]  # the pipeline's default must give the same images
        jobs[name] = {"folder": str(folder), "calls": calls}
    (work / "jobs.json").write_text(json.dumps(jobs))
    run_standalone(SAMPLE, folder=work)
    return torch.load(work / "images.pt", weights_only=True)


@every_family
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

        def next_noise(rng=rng):
            return more_noise(teacher, name, rng)

        with torch.no_grad():
            x0 = sample(student, noise, times[:steps], cond, next_noise)
            expected = (teacher.decode(x0) / 2 + 0.5).clamp(0, 1)
        error = difference(images[f"{name}/{steps}"], expected)
        record(name, column, error)
        assert error < 1e-3


@pytest.mark.parametrize("name", ["Stable Diffusion XL", "Flux.1 dev"])
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
