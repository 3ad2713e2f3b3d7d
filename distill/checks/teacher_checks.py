"""Checks of a teacher family: stock sampler, condition, latents, tangent, export, save and load."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from distill.checks.conditions import condition_checks
from distill.checks.stock import (
    StockRun,
    device_of,
    prompts_for,
    run_stock,
    use_first_order_sampler,
)
from distill.checks.table import Check, left_out
from distill.exporting.probes import probe_sources
from distill.exporting.recording import SAMPLES
from distill.exporting.verify import TOLERANCE, differences, exact_float32, load_exported, on_device
from distill.methods.jvp import finite_difference, jvp
from eval.pipelines.jobs import steps_text
from eval.pipelines.loading import correct_null_class
from eval.pipelines.networks import Pipeline, has_guider, network
from eval.pipelines.signatures import argument
from teachers.core.cosine_path import Cosine
from teachers.core.denoiser import Condition, Denoiser
from teachers.core.few_step import lcm_timesteps
from teachers.core.teacher import Teacher
from teachers.core.trigflow import Flow, rotate
from teachers.families.autoencoding import Autoencoding
from teachers.loading.notices import without_notices
from teachers.loading.saving import save_pipeline
from teachers.loading.source import load_pipeline
from teachers.media import Image

STEPS, GUIDANCE = 4, 3.0
FAINT = 1e-3  # share of x0 at the last angle below which epsilon students are evaluated at an earlier one
MAX_ANGLE = 1.2  # radians, the earlier angle
LARGEST_FLOAT64 = 2_000_000_000  # parameters of a network that is copied to float64
SECOND_TIME = 0.7  # radians


def check_teacher(
    family: type[Teacher],
    path: str,
    device: torch.device,
    sigma_data: float | None = None,
    size: Mapping[str, float] | None = None,
) -> list[Check]:
    """Run every check of a teacher.

    Args:
        family: The teacher's class.
        path: The pipeline, as `family.locate` returns it.
        device: Where the networks go.
        sigma_data: Standard deviation of the native latents or pixels; None: the family's.
        size: Size of a sample, as `Teacher.load` takes it.

    Returns:
        The results in order.
    """
    teacher = family.load(path, device, torch.float32, sigma_data, **family.size_argument(size))
    owners = (family, *family.components)
    pipe: Any = load_pipeline(family.pipelines, path, owners=owners, dtype=torch.float32, **family.options)
    correct_null_class(pipe)
    use_first_order_sampler(pipe)
    on_device(pipe, device)
    prompts = prompts_for(type(pipe)) or [""] * SAMPLES
    with exact_float32():
        checks = stock_checks(pipe, teacher, prompts)
        del pipe
        checks += latent_checks(teacher)
        cond = teacher.source_condition(prompts, probe_sources(teacher))
        checks += [batch_check(teacher, cond), tangent_check(teacher, cond)]
        if family.exports:
            checks += export_checks(teacher, prompts, device)
        else:
            checks.append(left_out("export", "students of this family are not exported"))
    return checks


def stock_checks(pipe: Pipeline, teacher: Teacher, prompts: Sequence[str]) -> list[Check]:
    """The stock sampler, the condition and the decoder, without and with guidance."""
    cond = teacher.source_condition(prompts, probe_sources(teacher))
    checks = []
    guided = teacher.guided and (argument(type(pipe), "guidance_scale") is not None or has_guider(pipe))
    for name, guidance in [("stock sampler", 1.0), ("stock sampler with guidance", GUIDANCE)][: 1 + guided]:
        run = run_stock(pipe, teacher, STEPS, guidance)
        if isinstance(teacher.denoiser.path, Cosine):
            checks.append(left_out(name, "it is stochastic; the export is compared"))
            continue
        first = teacher.guidance_has_momentum and guidance != 1.0
        gap = sampler_difference(run, teacher, cond, guidance, 1 if first else STEPS)
        checks.append(Check(name, gap, TOLERANCE, "the first step; later ones have momentum" if first else ""))
    checks += condition_checks(run, teacher, cond, guidance)
    ours = teacher.medium.judged(teacher.decode(run.outputs[-1] / teacher.denoiser.path.sigma_data))
    checks.append(Check("decode", (ours - run.decoded.to(ours.device)).abs().max().item(), TOLERANCE))
    return checks


def sampler_difference(run: StockRun, teacher: Teacher, cond: Condition, guidance: float, count: int = STEPS) -> float:
    """The largest difference of the first `count` steps of the stock sampler from ours, in standard deviations."""
    path, worst = teacher.denoiser.path, 0.0
    for i, (sample, output) in enumerate(zip(run.samples[:count], run.outputs[:count], strict=True)):
        t, s = (torch.full((len(sample),), angle, dtype=torch.float64) for angle in run.angles[i : i + 2])
        t, s = t.to(sample.device), s.to(sample.device)
        x_t = sample / path.input_scale(t[:1]).item()
        ours = rotate(x_t, teacher.velocity(x_t, t, cond, guidance), t, s) * path.scale(s[:1]).item()
        gap = ((ours - output).abs().max() / output.std().clamp_min(1e-9)).item()
        if math.isnan(gap):
            return gap
        worst = max(worst, gap)
    return worst


def latent_checks(teacher: Teacher) -> list[Check]:
    """Encoding and decoding.

    Images are compared with those of the pipeline's autoencoder of diffusers; without one, decoding must restore the
    encoded images. For other media, only shapes and finite values are checked.
    """
    generator = torch.Generator().manual_seed(0)
    channels, *size = teacher.medium.shape
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    coarse = torch.rand(4, channels, *[4] * len(size), generator=generator) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, size, mode=mode).clamp(-1, 1)
    if teacher.shape[0] == 1:
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    latents = teacher.encode(images.to(device_of(teacher)))
    decoded = teacher.decode(latents).cpu()
    checks = []
    if tuple(latents.shape[1:]) != tuple(teacher.shape):
        checks.append(Check("latent shape", math.nan, 0.0, f"{tuple(latents.shape[1:])}, want {tuple(teacher.shape)}"))
    if isinstance(teacher, Autoencoding):
        vae, options = teacher.stock_autoencoder, teacher.decode_options
    else:
        vae, options = getattr(getattr(teacher, "stock", None), "vae", None), {}
    if teacher.medium_class is not Image:
        valid = decoded.shape == images.shape and bool(decoded.isfinite().all())
        return [*checks, Check("encode, then decode", 0.0 if valid else math.nan, TOLERANCE, "shape and finite values")]
    if vae is not None:
        of_clips = "temperal_downsample" in vae.config  # diffusers' spelling
        inputs = images.to(vae.device, vae.dtype)
        if vae.config.get("in_channels", 3) == 4:  # with an alpha channel
            inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
        code: Any = vae.encode(inputs[:, :, None] if of_clips else inputs)
        mean = code.latent_dist.mean if hasattr(code, "latent_dist") else code[0]
        images = vae.decode(mean, **options).sample.float().cpu()
        images = (images[:, :, 0] if of_clips else images)[:, : decoded.shape[1]]
    spread = (decoded - images).abs().max().item() / images.abs().max().clamp_min(1).item()
    checks.append(Check("encode, then decode", spread, TOLERANCE, "against the autoencoder" if vae is not None else ""))
    std = latents.std().item()
    note = "" if 0.3 < std < 3 else "far from 1 on smooth test images; check teacher.sigma_data and encode"
    return [*checks, Check("standard deviation of latents", std, None, note)]


def batch_check(teacher: Teacher, cond: Condition) -> Check:
    """Samples of a batch must not depend on each other."""
    x, t = _point(teacher)
    alone = teacher.velocity(x[:1], t[:1], {key: value[:1] for key, value in cond.items()}, GUIDANCE)
    together = teacher.velocity(x, t, cond, GUIDANCE)[:1]
    gap = ((alone - together).abs().max() / together.std()).item()
    return Check("samples of a batch are independent", gap, TOLERANCE)


class KeepFloat64(TorchFunctionMode):
    """While active, conversions of float64 tensors to lower precision do nothing: time embeddings stay in float64."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            low = (torch.float32, torch.float16, torch.bfloat16)
            if function in (Tensor.float, Tensor.half, Tensor.bfloat16):
                return args[0]
            if function is Tensor.to:
                args = (
                    args[0],
                    *(
                        torch.float64 if isinstance(value, torch.dtype) and value in low else value
                        for value in args[1:]
                    ),
                )
                kwargs = {k: torch.float64 if isinstance(v, torch.dtype) and v in low else v for k, v in kwargs.items()}
        return function(*args, **kwargs)


def tangent_check(teacher: Teacher, cond: Condition) -> Check:
    """The exact derivative of a student's velocity along a trajectory against central differences in float64."""
    name = "tangent"
    if sum(p.numel() for p in teacher.denoiser.parameters()) > LARGEST_FLOAT64:
        return left_out(name, "the network is too large for float64")
    student = teacher.student().double()
    cond = {key: value.double() if value.is_floating_point() else value for key, value in cond.items()}
    x, t = (value.double() for value in _point(teacher))
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return student.velocity(x, t, cond)

    with KeepFloat64():
        _, exact = jvp(velocity, (x, t), (direction, torch.ones_like(t)))
        _, approximate = finite_difference(velocity, (x, t), (direction, torch.ones_like(t)), step=1e-6)
    return Check(name, ((exact - approximate).abs().max() / approximate.std()).item(), TOLERANCE)


def export_checks(teacher: Teacher, prompts: list[str], device: torch.device) -> list[Check]:
    """An untrained student through the pipeline of each `export.schedule` in one and two steps."""
    student = teacher.student()
    note = ""
    try:
        teacher.refit_time_embedding(student, 8.0)
    except ValueError as error:
        note = str(error)
    if student.prediction == "epsilon" and math.cos(student.path.t_max) < FAINT:  # it says too little about x0
        student.max_angle = MAX_ANGLE
    times = [student.path.t_max, second_time(teacher)]
    checks = one_export("export", teacher, student, teacher.native_times(student, times), prompts, device, note)
    if teacher.native_times(student, times) != times:
        teacher.export_schedule = "bent"
        checks += one_export("export.schedule=bent", teacher, student, times, prompts, device, note)
        teacher.export_schedule = "native"
    return checks


def one_export(
    name: str,
    teacher: Teacher,
    student: Denoiser,
    times: Sequence[float],
    prompts: list[str],
    device: torch.device,
    note: str,
) -> list[Check]:
    """A student through its exported pipeline at the angles `times`, and its weights after save and load."""
    try:
        pipe: Any = teacher.pipeline(student, times)
    except ValueError as error:
        return [Check(name, math.nan, TOLERANCE, f"at {times[0]:.4f} and {times[1]:.4f} rad: {error}")]
    kind, before = type(pipe), network(pipe).state_dict()
    calls = [
        {"num_steps": n, "call": teacher.calls(n, times[:n]) | teacher.timesteps_call(student, times[:n])}
        for n in (1, 2)
    ]
    with tempfile.TemporaryDirectory() as folder:
        save_pipeline(pipe, Path(folder))
        loaded = load_exported(kind, folder, device)
        reloaded = Check(f"{name}, save and load", state_gap(before, network(loaded).state_dict()), 0.0)
        del pipe, before
        with without_notices():
            worst = differences(loaded, teacher, student, times, calls, prompts)
    return [Check(f"{name}, {steps_text(n)}", gap, TOLERANCE, note) for n, gap in worst.items()] + [reloaded]


def second_time(teacher: Teacher) -> float:
    """An angle of the second step: any, or that of the scheduler's timestep if no time embedding can be changed."""
    path = teacher.denoiser.path
    if isinstance(path, Flow) or teacher.time_embeddings(teacher.denoiser.network):
        return SECOND_TIME
    return float(path.angle(torch.tensor(lcm_timesteps(path, 2)))[1])


def state_gap(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """The largest difference of two states; NaN if names or shapes differ."""
    if one.keys() != two.keys() or any(one[key].shape != two[key].shape for key in one):
        return math.nan
    return max((one[key].cpu().float() - two[key].cpu().float()).abs().max().item() for key in one)


def _point(teacher: Teacher) -> tuple[Tensor, Tensor]:
    """Two noisy latents and their angles."""
    device = device_of(teacher)
    x = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(1)).to(device)
    return x, torch.tensor([0.5, 1.1], device=device)
