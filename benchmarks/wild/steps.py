"""Compares every network call of a stock pipeline with the student's own, whatever pipeline and adapters are in use."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.exporting.verify import exact_float32
from teachers.core.denoiser import Denoiser
from teachers.core.native_schedule import native_times
from teachers.core.trigflow import VariancePreserving


class NoStep(ValueError):
    """A pipeline evaluates no network and raises no error."""


@dataclass
class Step:
    """One step of a stock pipeline.

    Attributes:
        sample: The native latents that it began with.
        timestep: The native timestep that the network received.
        inputs: The other keyword arguments of the network.
        x0: The clean latents that the scheduler computed from the network's output.
    """

    sample: Tensor
    timestep: float
    inputs: dict[str, Any]
    x0: Tensor


def record_steps(pipe: Any, call: Mapping[str, Any]) -> tuple[Any, list[Step]]:
    """Call a stock pipeline.

    Args:
        pipe: The pipeline, whose scheduler is an `LCMScheduler`.
        call: Its call arguments.

    Returns:
        Its output, and its steps.
    """
    network = pipe.components.get("transformer") or pipe.unet
    inputs: list[tuple[Tensor, Any, dict[str, Any]]] = []

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(("sample", "timestep"), args, strict=False)) | kwargs
        named.pop("timestep_cond", None)
        named.pop("return_dict", None)
        inputs.append((named.pop("sample", named.pop("hidden_states", None)), named.pop("timestep"), named))

    steps: list[Step] = []
    step = pipe.scheduler.step

    def recording(output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = step(output, timestep, sample, *args, **{**kwargs, "return_dict": False})
        steps.append(Step(sample, float(timestep), inputs[-1][2], result[-1]))
        return result

    recording.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
    hook = network.register_forward_pre_hook(before, with_kwargs=True)
    pipe.scheduler.step = recording
    try:
        with exact_float32():
            return pipe(**call), steps
    finally:
        hook.remove()
        del pipe.scheduler.step


def largest_gap(student: Denoiser, steps: list[Step]) -> float:
    """The largest difference of the steps' clean latents from the student's, in their standard deviations.

    Args:
        student: The student, with the same adapters as the pipeline.
        steps: The steps of a pipeline, at native timesteps.

    Returns:
        The difference.

    Raises:
        NoStep: If there is no step.
    """
    assert isinstance(student.path, VariancePreserving)
    if not steps:
        raise NoStep("the pipeline makes no step and returns the noised image")
    worst = 0.0
    for step in steps:
        (t,) = native_times(student, [int(step.timestep)])
        angle = torch.full((len(step.sample),), t, dtype=torch.float64)
        reference = copy.copy(student)
        reference._modules = dict(student._modules)
        reference.defaults = {}
        reference.call = lambda network, sample, timestep, cond, step=step: network(
            sample, timestep=timestep, **step.inputs, return_dict=False
        )[0]
        scale = student.path.scale(angle[:1]).item()
        with exact_float32():
            x0 = reference.denoise(step.sample / scale, angle, {}) * student.path.sigma_data
        worst = max(worst, ((x0 - step.x0).abs().max() / x0.std().clamp_min(1)).item())
    return worst
