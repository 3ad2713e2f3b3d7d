"""Stock pipelines of clips and sounds: how they are called, and what their networks receive."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from distill.exporting.recording import NoiseRecorder, recorded_steps
from teachers.core.cosine_path import Cosine
from teachers.core.trigflow import Flow
from teachers.media import Video
from tests.teachers.families.stock import PROMPTS
from tests.teachers.tiny_media import BUILDERS

NAMES = list(BUILDERS)
LATENT = {"output_type": "latent"}


@dataclass
class Run:
    """One call of a stock pipeline.

    Attributes:
        inputs: Keyword arguments of all network calls.
        samples: Native samples before each step, as the network receives them.
        outputs: Native samples after each step.
        x0: Predictions of native clean data; empty if the scheduler does not keep them.
        angles: Angles of all steps, and of the end.
        noises: The noise that the pipeline drew.
    """

    inputs: list[dict[str, Any]]
    samples: list[Tensor]
    outputs: list[Tensor]
    x0: list[Tensor]
    angles: list[float]
    noises: list[Tensor]


def load_stock(teacher, folder) -> Any:
    """The stock pipeline with a solver of first order."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if teacher.denoiser.path.__class__ is Flow and not isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler):
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=pipe.scheduler.config.flow_shift)
    if isinstance(teacher.denoiser.path, Cosine):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, solver_order=1)
    return pipe


def run(pipe, teacher, call, seed=0) -> Run:
    """Call a pipeline and record what happens."""
    calls: list[dict[str, Any]] = []
    networks = [pipe.components.get(name) for name in (teacher.network, "transformer_2")]
    hooks = [
        network.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append({"args": args} | kwargs), with_kwargs=True
        )
        for network in networks
        if network is not None
    ]
    x0, convert = [], getattr(pipe.scheduler, "convert_model_output", None)
    if convert is not None:

        def recorded(*args, **kwargs):
            x0.append(convert(*args, **kwargs))
            return x0[-1]

        pipe.scheduler.convert_model_output = recorded
    with recorded_steps(pipe.scheduler) as outputs, NoiseRecorder(teacher.shape) as recorder, torch.no_grad():
        torch.manual_seed(seed)  # some schedulers draw their noise from the global generator
        pipe(prompt=PROMPTS, **call, **LATENT, generator=torch.Generator().manual_seed(seed))
    for hook in hooks:
        hook.remove()
    per_step = len(calls) // len(outputs)
    first = [entry["args"][0] if entry["args"] else entry["hidden_states"] for entry in calls[::per_step]]
    path, scheduler = teacher.denoiser.path, pipe.scheduler
    timesteps = scheduler.timesteps.double() * (1000 if isinstance(path, Cosine) else 1)
    return Run(
        calls,
        [teacher.unpack(x[:2]) for x in first],
        [teacher.unpack(x) for x in outputs],
        x0,
        [*path.angle(timesteps).tolist(), 0.0],
        [teacher.unpack(noise) for noise in recorder.noises],
    )


def conditions(run: Run, teacher, keys) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the network received with and without the prompt, in one batch (without first) or in two calls."""
    one, two = run.inputs[:2]
    if teacher.medium_class is Video and teacher.network == "unet":  # once for each frame
        one = {key: value[:: teacher.shape[1]] for key, value in one.items() if key in keys}
    if len(one["encoder_hidden_states"]) == 2:
        return {key: one[key] for key in keys}, {key: two[key] for key in keys}
    return {key: one[key].chunk(2)[1] for key in keys}, {key: one[key].chunk(2)[0] for key in keys}
