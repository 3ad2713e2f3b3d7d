"""Comparison of an exported pipeline with its student: the same noise through both, for every promised call.

The exported pipeline is loaded from its folder and called with the arguments in its `distill.json`. The noise that it
draws is recorded and passed to the sampler of `teachers.core.sampling`. Both sides compute in float32 without TF32, so
that a difference is an error of the export and not a rounding error.

The difference is the larger of two: the largest absolute difference of the decoded samples, such as images in [0, 1],
and that of the latents of the last step, divided by their standard deviation where it is above 1. Images alone hide
errors where they saturate.
"""

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from distill.exporting.probes import probe_sources
from distill.exporting.recording import SAMPLES, NoiseRecorder, recorded_steps
from distill.exporting.safety import without_checker
from distill.methods.compiling import eager
from eval.pipelines.generate import arguments, cuda_devices
from eval.pipelines.jobs import steps_text
from eval.pipelines.networks import Pipeline
from eval.pipelines.signatures import argument
from teachers.core.denoiser import Condition, Denoiser
from teachers.core.sampling import sample
from teachers.core.teacher import Teacher
from teachers.loading import registry
from teachers.loading.components import absent_components
from teachers.loading.corrections import correct_autoencoder
from teachers.loading.inspection import check_folder
from teachers.loading.load_errors import loading_errors
from teachers.loading.notices import without_notices
from teachers.loading.source import check_trusted, check_weights
from teachers.loading.weights import weight_files
from teachers.networks.precision import float32_products

TOLERANCE = 1e-3  # of images in [0, 1], and of latents in standard deviations
SEED = 0


class ExportMismatch(ValueError):
    """An exported pipeline does not give its student's images."""


@contextmanager
def exact_float32() -> Iterator[None]:
    """A context without TF32 and without compiled networks."""
    with float32_products(), eager(), torch.no_grad():
        yield


@dataclass
class Sampled:
    """What a pipeline sampled.

    Attributes:
        samples: Decoded samples (SAMPLES, *medium.shape) in the judged range, such as images in [0, 1].
        latents: What the last step of its scheduler returned; None if it calls no `scheduler.step`.
        noises: The noise that it drew, in order.
    """

    samples: Tensor
    latents: Tensor | None
    noises: list[Tensor]


def sample_pipeline(
    pipe: Pipeline, call: Mapping[str, Any], prompts: Sequence[str] | None, teacher: Teacher
) -> Sampled:
    """Sample with a stock pipeline, from `probe_sources` if it takes source images, and record its noise.

    Args:
        pipe: The pipeline.
        call: Its call arguments, apart from prompts and noise.
        prompts: `SAMPLES` prompts; None for pipelines without prompts.
        teacher: The teacher whose students the pipeline samples.

    Returns:
        Decoded samples, latents and noise, on the CPU.
    """
    sources = probe_sources(teacher)
    ready = arguments(pipe, call, prompts, range(SAMPLES), sources=sources)
    ready |= {} if sources is None else teacher.exact_source_call(sources)
    ready.pop(argument(type(pipe), "latents") or "", None)  # the pipeline draws its first noise too
    recorder = NoiseRecorder(teacher.shape)

    def after_step(scheduler: Any, sample: Tensor) -> None:
        noise = teacher.added_noise(scheduler, sample)
        if noise is not None:  # other draws are parts of it
            recorder.noises[len(steps) :] = [noise.float().cpu()]

    with torch.random.fork_rng(cuda_devices()), recorded_steps(pipe.scheduler, after_step) as steps, recorder:
        torch.manual_seed(SEED)
        samples = teacher.medium.received(pipe(**ready)).cpu()
    return Sampled(samples, steps[-1].float().cpu() if steps else None, recorder.noises)


def sample_student(
    teacher: Teacher, student: Denoiser, times: Sequence[float], noises: Sequence[Tensor], cond: Condition
) -> Tensor:
    """Sample with the project's own sampler.

    Args:
        teacher: The student's teacher.
        student: The student.
        times: Decreasing angles in radians.
        noises: The noise of each step, as a pipeline drew it.
        cond: The condition.

    Returns:
        Latents of unit variance, (B, *teacher.shape).
    """
    device = next(student.parameters()).device
    native = iter([teacher.unpack(noise).to(device) for noise in noises])
    cond = {key: value.to(device) for key, value in cond.items()}
    return sample(student, next(native), times, cond, lambda: next(native), angle_dtype=torch.float64)


def difference(teacher: Teacher, sampled: Sampled, x0: Tensor) -> float:
    """The difference of a pipeline's samples from a student's latents, as the module describes it; it may be NaN.

    Raises:
        ExportMismatch: If the shapes differ.
    """
    samples = teacher.medium.judged(teacher.exact_decode(x0)).cpu()
    if samples.shape != sampled.samples.shape:
        raise ExportMismatch(
            f"the pipeline must give {teacher.medium.plural} of the shape {tuple(samples.shape)}, got "
            f"{tuple(sampled.samples.shape)}"
        )
    gaps = [(sampled.samples - samples).abs().max()]
    if sampled.latents is not None:
        ours, theirs = x0.cpu(), teacher.unpack(sampled.latents) / teacher.denoiser.path.sigma_data
        gaps.append((theirs - ours).abs().max() / ours.std().clamp_min(1))
    return torch.stack(gaps).max().item()


def differences(
    pipe: Pipeline,
    teacher: Teacher,
    student: Denoiser,
    times: Sequence[float],
    calls: Sequence[Mapping[str, Any]],
    prompts: Sequence[str],
) -> dict[int, float]:
    """Compare a pipeline with a student.

    Args:
        pipe: The pipeline in memory, which is emptied: afterwards it has no networks.
        teacher: The student's teacher.
        student: The student.
        times: Decreasing angles of the student's steps, in radians.
        calls: `num_steps` and `call` of every promised call, as in `distill.json`.
        prompts: Prompts of the comparison; unused without guidance.

    Returns:
        The largest difference by number of steps; NaN if a sample is not finite.

    Raises:
        ExportMismatch: If the pipeline draws less noise than the student needs, or its images have another shape.
    """
    name = type(pipe).__name__
    different = 1 if teacher.pads_prompts else len(prompts)
    chosen = [prompts[i % different] for i in range(SAMPLES)] if teacher.prompted else None
    with exact_float32():
        sampled = _sample_all(pipe, calls, chosen, teacher)
        cond = teacher.exact_source_condition(chosen or [""] * SAMPLES, probe_sources(teacher))
        worst: dict[int, float] = {}
        for entry, samples in zip(calls, sampled, strict=True):
            steps, noises = entry["num_steps"], samples.noises
            if len(noises) < steps:
                raise ExportMismatch(
                    f"{name} must draw the noise of each of its {steps} steps with torch.randn, got {len(noises)} draws"
                )
            scales = _scales(teacher, student, entry["call"])
            x0 = sample_student(teacher, student, times[:steps], noises[:steps], {**cond, **scales})
            both = difference(teacher, samples, x0), worst.get(steps, 0.0)
            worst[steps] = math.nan if any(map(math.isnan, both)) else max(both)
    return worst


def _sample_all(
    pipe: Pipeline, calls: Sequence[Mapping[str, Any]], prompts: Sequence[str] | None, teacher: Teacher
) -> list[Sampled]:
    """The samples of every call; the pipeline's networks are then freed. Without memory on the GPU: on the CPU."""
    try:
        sampled = [sample_pipeline(pipe, entry["call"], prompts, teacher) for entry in calls]
    except torch.OutOfMemoryError:
        if hasattr(pipe, "remove_all_hooks"):
            pipe.remove_all_hooks()
        torch.cuda.empty_cache()
        pipe.to("cpu")
        sampled = [sample_pipeline(pipe, entry["call"], prompts, teacher) for entry in calls]
    release(pipe)
    return sampled


def _scales(teacher: Teacher, student: Denoiser, call: Mapping[str, Any]) -> Condition:
    """The condition's entries for the guidance scale of a call, if the student has an input for it."""
    if not student.guidance_input or "guidance_scale" not in call:
        return {}
    return teacher.guidance_condition(student, torch.full((SAMPLES,), float(call["guidance_scale"])))


def on_device(pipe: Pipeline, device: torch.device) -> Pipeline:
    """Prepare a pipeline to sample on `device`. On a GPU only the component in use is there, to need little memory."""
    pipe.set_progress_bar_config(disable=True)
    if device.type == "cuda" and getattr(pipe, "model_cpu_offload_seq", None):
        pipe.enable_model_cpu_offload(device=device)
        return pipe
    return pipe.to(device)


def release(pipe: Pipeline) -> None:
    """Free a pipeline's networks."""
    if hasattr(pipe, "remove_all_hooks"):
        pipe.remove_all_hooks()
    for name, part in list(pipe.components.items()):
        if isinstance(part, torch.nn.Module):
            setattr(pipe, name, None)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def promised_calls(calls: Sequence[Mapping[str, Any]], scales: Sequence[float]) -> list[Mapping[str, Any]]:
    """The calls to compare: those of `distill.json`, and each of them at every embedded guidance scale.

    Args:
        calls: `num_steps` and `call` of each call.
        scales: The guidance scales that the student has an input for; empty for other students.
    """
    more = [{**entry, "call": {**entry["call"], "guidance_scale": scale}} for entry in calls for scale in scales]
    return [*calls, *more]


def load_exported(
    kind: type[DiffusionPipeline], folder: Any, device: torch.device, safety_checker: bool = False
) -> Pipeline:
    """Load an exported pipeline from its folder in float32, as the model card says, with or without safety checker."""
    check_trusted(str(folder), (kind, *registry.owners()), kind)
    check_weights(str(folder))
    check_folder(str(folder))
    absent = stored_without(kind, folder)
    with loading_errors(str(folder)):
        options = absent if safety_checker else absent | without_checker(kind)
        variants = {weight_files(path)[0] for path in Path(folder).iterdir() if path.is_dir()} - {None}
        options |= {"variant": variants.pop()} if len(variants) == 1 else {}
        with without_notices():
            pipe = kind.from_pretrained(folder, use_safetensors=True, trust_remote_code=False, **options)
    correct_autoencoder(pipe)
    return on_device(pipe, device)


def stored_without(kind: type[DiffusionPipeline], folder: Any) -> dict[str, None]:
    """The arguments of `from_pretrained` for components that a pipeline was saved without, such as T5 of SD3."""
    return dict.fromkeys(absent_components(kind, kind.load_config(folder), str(folder)))


def check_finite(student: Denoiser) -> None:
    """Check a student's weights.

    Raises:
        ValueError: If one of them is NaN or infinite.
    """
    for name, value in student.network.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(
                f"the student's weights must be finite, got NaN or infinite values in {name}; export an earlier "
                "checkpoint"
            )


def refuse(worst: Mapping[int, float], what: str, kept: str) -> None:
    """Raise ExportMismatch if a difference is above `TOLERANCE`.

    Args:
        worst: The largest difference by number of steps.
        what: What was compared with the student.
        kept: What remains for the user.
    """
    for count, gap in worst.items():
        if not gap <= TOLERANCE:
            raise ExportMismatch(
                f"{what} must give the student's samples within {TOLERANCE:g}, got a difference of {gap:.2e} at "
                f"{steps_text(count)}; it was not exported, {kept}"
            )
