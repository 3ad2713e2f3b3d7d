"""A teacher's stock pipeline with a deterministic first-order sampler, and what its network receives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from distill.exporting.verify import recorded_steps
from eval.pipelines.generate import Pipeline, arguments, cuda_devices, images_of, network, parameters
from teachers.core.teacher import Teacher
from teachers.core.trigflow import Flow

PROMPTS, CLASSES = ("a photo of a coat", "an ankle boot"), ("0", "1")


@dataclass
class StockRun:
    """One call of a stock pipeline.

    Attributes:
        inputs: Keyword arguments of the first network call; nested ones are added.
        samples: Native samples (B, *shape) before each step.
        outputs: Native samples after each step.
        angles: Angles in radians of all steps, and of the end.
        images: Images (B, 3, H, W) in [0, 1].
    """

    inputs: dict[str, Any]
    samples: list[Tensor]
    outputs: list[Tensor]
    angles: list[float]
    images: Tensor


def prompts_for(pipe: Pipeline) -> list[str] | None:
    """Two prompts that the pipeline takes; class numbers for class-conditional ones, None for unconditional ones."""
    takes = parameters(type(pipe))
    return list(PROMPTS) if "prompt" in takes else list(CLASSES) if "class_labels" in takes else None


def use_first_order_sampler(pipe: Pipeline) -> None:
    """Replace a scheduler of diffusers by DDIM with its own `alphas_cumprod`, or by Euler for a rectified flow.

    Schedulers of other packages stay; they must be deterministic and of first order. Learned variances are dropped.
    """
    scheduler = pipe.scheduler
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
    if unet is not None and unet.config.out_channels == 2 * unet.config.in_channels:
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
    prompts = prompts_for(pipe)
    ready = arguments(pipe, teacher.usual_call(num_steps, guidance), prompts, range(2))
    ready.pop("latents", None)
    if "generator" in ready:
        ready["generator"] = torch.Generator().manual_seed(0)
    calls: list[tuple[Any, Any]] = []
    hook = network(pipe).register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        with torch.random.fork_rng(cuda_devices()), torch.no_grad(), recorded_steps(pipe.scheduler) as outputs:
            torch.manual_seed(0)
            images = images_of(pipe(**ready))
    finally:
        hook.remove()
    samples = [teacher.unpack(_sample_of(args, kwargs)[:2]) for args, kwargs in calls]
    inputs = {**calls[0][1], **(calls[0][1].get("added_cond_kwargs") or {})}
    path = teacher.denoiser.path
    timesteps = torch.as_tensor(pipe.scheduler.timesteps).double().cpu()
    end = path.t_min if isinstance(pipe.scheduler, DDIMScheduler) and not isinstance(path, Flow) else 0.0
    angles = [*path.angle(timesteps).tolist(), end]
    return StockRun(inputs, samples, [teacher.unpack(output[:2]) for output in outputs], angles, images)


def _sample_of(args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """The noisy sample among the arguments of a network call: the first tensor with more than one dimension."""
    named = [kwargs[key] for key in ("hidden_states", "sample") if key in kwargs]
    first: Tensor = next(v for v in (*args, *named, *kwargs.values()) if isinstance(v, Tensor) and v.ndim > 1)
    return first
