"""Stock pipelines of all families: how they are called, and what their networks receive."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline

from teachers.core.trigflow import Flow
from tests.teachers.tiny_pipelines import BUILDERS

NAMES = list(BUILDERS)
PIXELS = [name for name, (family, _) in BUILDERS.items() if family in ("unconditional", "edm")]
PROMPTS = ["a photo of a coat", "an ankle boot"]


def prompts_of(name):
    return {"DiT": ["goldfish", "7"], "EDM, ImageNet-64": ["1", "7"]}.get(name, PROMPTS)


def inputs_of(name):
    """The arguments of a stock pipeline that select what is sampled."""
    if name == "DiT":
        return {"class_labels": [1, 7]}
    if name == "EDM, ImageNet-64":
        return {"class_labels": [1, 7], "batch_size": 2}
    return {"batch_size": 2} if name in PIXELS else {"prompt": PROMPTS}


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
    latent = {} if name in ("DiT", *PIXELS) else {"output_type": "latent"}
    pipe(**inputs_of(name), **call, **latent, generator=torch.Generator().manual_seed(0))
    args, kwargs = calls[0]
    native = args[0] if args else kwargs["hidden_states"]
    path, scheduler = teacher.denoiser.path, pipe.scheduler
    if isinstance(path, Flow):
        angles = path.angle(scheduler.sigmas.double() * 1000).tolist()
    else:
        end = 0.0 if scheduler.config.get("set_alpha_to_one", True) else path.t_min
        angles = [*path.angle(teacher.timesteps(scheduler)).tolist(), end]
    last = outputs[-1][:2]  # DiT keeps both halves of the guided batch
    inputs = kwargs | (kwargs.get("added_cond_kwargs") or {})
    return Run(inputs, unpacked(native[:2], teacher.shape), unpacked(last, teacher.shape), angles)


def change_ignored_entries(teacher, *vaes):
    """Set all entries that the family declares to be ignored by its pipeline, but those with the name of a buffer."""
    channels = teacher.latent_channels()
    values = {"scaling_factor": 3.0, "shift_factor": 0.3, "latents_mean": [0.2] * channels}
    values["latents_std"] = [1.7] * channels
    read = {*teacher.statistics, *teacher.optional_statistics, *dict(teacher.stock_autoencoder.named_buffers())}
    for vae in vaes:
        vae.register_to_config(**{name: value for name, value in values.items() if name not in read})


def noise_of(teacher, name, rng):
    channels, height, width = teacher.shape
    return torch.randn(2, channels, height, width, generator=rng)


def more_noise(teacher, name, rng):
    """Noise of a later step; Flux samples it as packed latents."""
    channels, height, width = teacher.shape
    if name.startswith("Flux"):
        return unpacked(torch.randn(2, height * width // 4, channels * 4, generator=rng), teacher.shape)
    return noise_of(teacher, name, rng)


def edm_noise(student, noise, x0, times, fresh):
    """The noise of the second step of an EDM export, which has a share of the first noise as x0 leaves it."""
    first, second = student.path.native(torch.tensor(times, dtype=torch.float64))[1].tolist()
    share = second / first
    left = (noise * math.sqrt(first**2 + 1) - student.path.sigma_data * x0) / first
    return share * left + math.sqrt(1 - share**2) * fresh


def difference(actual, expected):
    """Largest difference in standard deviations of the expected values; infinite if a value is NaN."""
    gap = (actual - expected).abs().max() / expected.std().clamp_min(1e-9)
    return gap.nan_to_num(nan=float("inf")).item()
