"""A teacher's stock pipeline with a deterministic first-order sampler, and what its network receives."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from diffusers import (
    CosineDPMSolverMultistepScheduler,
    DDIMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from distill.exporting.probes import probe_sources
from distill.exporting.recording import SAMPLES, recorded_steps
from eval.pipelines.generate import arguments, cuda_devices
from eval.pipelines.networks import Pipeline, networks, set_guidance
from eval.pipelines.signatures import argument, takes_prompts
from teachers.core.schedule import edm_options, is_edm
from teachers.core.teacher import Teacher
from teachers.core.trigflow import Flow
from teachers.loading.registry import family_of_class

PROMPTS, CLASSES = ("a photo of a coat", "an ankle boot"), ("0", "1")

Inputs: TypeAlias = dict[str, Tensor]


@dataclass
class StockRun:
    """One call of a stock pipeline.

    Attributes:
        inputs: What the network receives in the first step, by names of its arguments; see `joined`.
        samples: Native samples (B, *shape) before each step.
        outputs: Native samples after each step.
        angles: Angles in radians of all steps, and of the end.
        decoded: Decoded samples (B, *medium.shape) in the judged range, such as images in [0, 1].
    """

    inputs: Inputs
    samples: list[Tensor]
    outputs: list[Tensor]
    angles: list[float]
    decoded: Tensor


def prompts_for(kind: type[DiffusionPipeline]) -> list[str] | None:
    """Two prompts that the pipeline takes; class numbers for class-conditional ones, None for unconditional ones.

    They are equal if the pipeline would pad them to the same length (`Contract.pads_prompts`).
    """
    family = family_of_class(kind)
    if family is not None and family.pads_prompts:
        return [PROMPTS[0]] * SAMPLES
    return list(PROMPTS if argument(kind, "prompt") else CLASSES) if takes_prompts(kind) else None


def use_first_order_sampler(pipe: Pipeline) -> None:
    """Replace a scheduler of diffusers by DDIM with its own `alphas_cumprod`, or by Euler for a rectified flow
    or EDM's schedule.

    Schedulers of other packages stay; they must be deterministic and of first order. Stable Audio's stays too, which is
    stochastic. Learned variances are dropped.
    """
    scheduler = pipe.scheduler
    if isinstance(scheduler, CosineDPMSolverMultistepScheduler):
        return
    if is_edm(scheduler):
        pipe.scheduler = EDMEulerScheduler(**edm_options(scheduler), final_sigmas_type="zero")
        return
    config = getattr(scheduler, "config", {})
    deterministic = isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and not config.get("stochastic_sampling")
    if type(scheduler).__module__.startswith("diffusers") and not deterministic:
        if config.get("use_flow_sigmas") or not hasattr(scheduler, "alphas_cumprod"):
            shift = config.get("flow_shift", config.get("shift", 1.0))
            pipe.scheduler = FlowMatchEulerDiscreteScheduler(config["num_train_timesteps"], shift=shift)
        else:
            pipe.scheduler = DDIMScheduler(
                num_train_timesteps=len(scheduler.alphas_cumprod),
                prediction_type=config.get("prediction_type", "epsilon"),
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            )
            pipe.scheduler.alphas_cumprod = scheduler.alphas_cumprod.float()
            pipe.scheduler.final_alpha_cumprod = pipe.scheduler.alphas_cumprod[0]
    unet = pipe.components.get("unet")
    if unet is not None and unet.config.get("out_channels") == 2 * unet.config.in_channels:
        unet.register_forward_hook(_first_half)


def _first_half(module: nn.Module, args: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (output[0].chunk(2, dim=1)[0], *output[1:])
    output.sample = output.sample.chunk(2, dim=1)[0]
    return output


def run_stock(pipe: Pipeline, teacher: Teacher, num_steps: int, guidance: float) -> StockRun:
    """Call a stock pipeline as the teacher's usual call does, and record what happens.

    Args:
        pipe: The pipeline, after `use_first_order_sampler`.
        teacher: The teacher.
        num_steps: Number of steps.
        guidance: Guidance scale.
    """
    set_guidance(pipe, guidance)
    call, sources = teacher.usual_call(num_steps, guidance), probe_sources(teacher)
    ready = arguments(pipe, call, prompts_for(type(pipe)), range(SAMPLES), sources=sources)
    ready |= {} if sources is None else teacher.exact_source_call(sources)
    ready.pop(argument(type(pipe), "latents") or "", None)
    with (
        torch.random.fork_rng(cuda_devices()),
        torch.no_grad(),
        recorded_steps(pipe.scheduler) as outputs,
        network_inputs(networks(pipe), lambda: len(outputs)) as calls,
    ):
        torch.manual_seed(0)
        decoded = teacher.medium.received(pipe(**ready))
    steps = [[call for step, call in calls if step == i] for i in range(len(outputs))]
    if not all(steps):
        raise ValueError(
            f"{type(pipe).__name__} must call its network and then scheduler.step in each step, got {len(calls)} calls "
            f"of the network and {len(outputs)} of scheduler.step"
        )
    samples = [teacher.unpack(first_sample(step[0])[:SAMPLES]) for step in steps]
    path = teacher.denoiser.path
    timesteps = teacher.timesteps(pipe.scheduler).cpu()
    end = path.t_min if isinstance(pipe.scheduler, DDIMScheduler) and not isinstance(path, Flow) else 0.0
    angles = [*path.angle(timesteps).tolist(), end]
    after = [teacher.unpack(output[:SAMPLES]) for output in outputs]
    return StockRun(joined(steps[0]), samples, after, angles, decoded)


@contextmanager
def network_inputs(modules: Sequence[nn.Module], step: Callable[[], int]) -> Iterator[list[tuple[int, Inputs]]]:
    """A context that yields a list, to which `step()` and the inputs of every call of some networks are appended."""
    calls: list[tuple[int, Inputs]] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = inspect.signature(module.forward)
        calls.append((step(), tensors(names.bind(*args, **kwargs).arguments)))

    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def tensors(values: Mapping[str, Any]) -> Inputs:
    """The tensors among `values` by name; those of nested mappings are added, and lists of samples become batches.

    So do lists with a list of one tensor for each sample.
    """
    found: Inputs = {}
    for name, value in values.items():
        listed = value if isinstance(value, list) else []
        rows = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in listed]
        if isinstance(value, Tensor):
            found[name] = value.detach()
        elif rows and all(isinstance(x, Tensor) and x.ndim > 1 for x in rows):
            found |= _of_list(name, [x.detach() for x in rows])
        elif isinstance(value, Mapping):
            found |= tensors(value)
    return found


def _of_list(name: str, rows: list[Tensor]) -> Inputs:
    """A list of tensors as a batch; those of different lengths are padded with zeros and get a mask (B, L)."""
    if rows[0].ndim != 2:
        return {name: torch.stack(rows)}
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long, device=row.device) for row in rows], True)
    return {name: pad_sequence(rows, True), f"{name}_mask": mask}


def first_sample(inputs: Inputs) -> Tensor:
    """The noisy sample among the inputs of a network: the first tensor with more than one dimension."""
    named = [inputs[key] for key in ("hidden_states", "sample") if key in inputs]
    return next(value for value in (*named, *inputs.values()) if value.ndim > 1)


def joined(calls: Sequence[Inputs]) -> Inputs:
    """The inputs of one step as one batch; pipelines may call the network once without and once with the condition.

    Inputs of different lengths, such as those of prompts, are padded with zeros, and get a mask if they have none.
    """
    if len(calls) == 1:
        return calls[0]
    rows = len(first_sample(calls[0]))
    lengths = {key: {call[key].shape[1] for call in calls if key in call} for key, x in calls[0].items() if x.ndim > 2}
    masks = {f"{key}_mask" for key, found in lengths.items() if len(found) > 1}
    masks |= {key for call in calls for key in call if key.endswith("_mask") and key.removesuffix("_mask") in calls[0]}
    calls = [call | {key: whole_mask(call, key) for key in masks - set(call)} for call in calls]
    return {
        key: torch.cat(_padded([call[key] for call in calls])) if value.ndim and len(value) == rows else value
        for key, value in calls[0].items()
        if all(key in call for call in calls)
    }


def whole_mask(inputs: Inputs, key: str) -> Tensor:
    """The mask (B, L) that a network uses without the mask `key` of its input (B, L, C): it keeps all tokens."""
    value = inputs[key.removesuffix("_mask")]
    return torch.ones(value.shape[:2], dtype=torch.long, device=value.device)


def _padded(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors (B, L, ...) with zeros up to the largest L; those of equal shapes and (B,) stay as they are."""
    if len({tensor.shape[1:] for tensor in tensors}) == 1:
        return list(tensors)
    longest = max(tensor.shape[1] for tensor in tensors)
    return [
        torch.cat([x, x.new_zeros(len(x), longest - x.shape[1], *x.shape[2:])], dim=1) if x.shape[1] < longest else x
        for x in tensors
    ]


def device_of(teacher: Teacher) -> torch.device:
    """The device of a teacher's network."""
    return next(iter(teacher.denoiser.parameters())).device
