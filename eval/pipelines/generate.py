"""Calling any diffusers pipeline the same way: same prompts, same noise, images in [0, 1], network evaluations counted.

What a pipeline takes is read from the signature of its `__call__`: text-to-image pipelines take prompts and latents,
class-to-image ones (`DiTPipeline`) class labels, and `DDPMPipeline` neither. Noise belongs to a sample, not to a batch:
sample number i has its own generators, so neither the batch size nor the pipeline's number of steps changes what it
starts from.
"""

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from torch import Tensor

Pipeline: TypeAlias = Any  # a DiffusionPipeline; which parts and arguments it has, only its own class declares


def load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """The pipeline in `folder`, silent, on `device`, without the safety checker that would blacken images.

    Raises ValueError where diffusers cannot load it.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"diffusers could not load the pipeline in {folder}: {error}") from error
    finally:
        diffusers.utils.logging.enable_progress_bar()
        transformers.utils.logging.enable_progress_bar()
    if pipe.components.get("safety_checker") is not None:
        pipe.register_modules(safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def parameters(kind: type[DiffusionPipeline]) -> set[str]:
    """The names of the arguments that the `__call__` of a class of pipelines takes."""
    return set(inspect.signature(kind.__call__).parameters)


def check_call(kind: type[DiffusionPipeline], call: Mapping[str, Any], prompted: bool) -> None:
    """Raise ValueError where `call` names an argument that the class lacks, or prompts are missing or not wanted."""
    takes = parameters(kind)
    strangers = sorted(set(call) - takes)
    if strangers:
        raise ValueError(f'{kind.__name__} takes no argument "{strangers[0]}"; mend the call in distill.json')
    if prompted and not takes & {"prompt", "class_labels"}:
        raise ValueError(f"{kind.__name__} draws without text; evaluate it without prompts (--prompts none)")
    if not prompted and "prompt" in takes:
        raise ValueError(f"{kind.__name__} draws from text and got no prompts; name a file of them with --prompts")


def pipeline_class(folder: Path) -> type[DiffusionPipeline] | None:
    """The class that a pipeline folder names, read without loading weights; None where diffusers has no such class.

    Raises ValueError where model_index.json cannot be read.
    """
    file = folder / "model_index.json"
    try:
        name = json.loads(file.read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no index of a diffusers pipeline; save the pipeline again ({error})") from error
    return getattr(diffusers, str(name), None)


def network(pipe: Pipeline) -> Any:
    """The network that the pipeline calls step by step: its `transformer` or its `unet`."""
    for name in ("transformer", "unet"):
        found = pipe.components.get(name)
        if isinstance(found, torch.nn.Module):
            return found
    raise ValueError(
        f"{type(pipe).__name__} has neither a unet nor a transformer, so eval cannot count its evaluations"
    )


def use_modern_solver(pipe: Pipeline) -> str | None:
    """Give the pipeline what a user would otherwise pick for few steps, and return its name; None leaves it as it was.

    DPM-Solver++ (2M) (Lu et al., arXiv 2211.01095) with trailing timesteps and a first-order last step. Flow-matching
    and other schedulers that are not built from betas stay. Every argument is given outright: `from_config` would
    forget betas that the old scheduler took from its class's defaults.
    """
    old = pipe.scheduler.config
    if "trained_betas" not in old:
        return None
    pipe.scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=old["num_train_timesteps"],
        trained_betas=pipe.scheduler.betas.tolist(),
        prediction_type=old.get("prediction_type", "epsilon"),
        rescale_betas_zero_snr=bool(old.get("rescale_betas_zero_snr", False)),
        algorithm_type="dpmsolver++",
        solver_order=2,
        lower_order_final=True,
        use_karras_sigmas=False,
        timestep_spacing="trailing",
        # Pixel-space schedulers clip x0; dynamic thresholding with this maximum is the same clipping.
        thresholding=bool(old.get("clip_sample", False)),
        sample_max_value=float(old.get("clip_sample_range", 1.0)),
    )
    return "DPM-Solver++"


def generators(indices: Sequence[int], seed: int, stream: str) -> list[torch.Generator]:
    """One CPU generator a sample, from (seed, stream, sample number); torch keeps 32 bits of a CPU seed."""
    digests = (hashlib.sha256(f"{seed}/{stream}/{i}".encode()).digest() for i in indices)
    return [torch.Generator().manual_seed(int.from_bytes(digest[:4], "little")) for digest in digests]


def latent_shape(pipe: Pipeline, call: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """(channels, height, width) of the pipeline's latents; None where its network does not tell (packed latents)."""
    config = network(pipe).config
    size = config.get("sample_size")
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if "height" in call:
        height = int(call["height"]) // pipe.vae_scale_factor
    if "width" in call:
        width = int(call["width"]) // pipe.vae_scale_factor
    return int(config["in_channels"]), int(height), int(width)


def arguments(
    pipe: Pipeline,
    call: Mapping[str, Any],
    prompts: Sequence[str] | None,
    indices: Sequence[int],
    seed: int = 0,
    stream: str = "samples",
) -> dict[str, Any]:
    """Everything to call `pipe` with for samples number `indices`, whose prompts are `prompts` (None: unconditional).

    Raises ValueError as `check_call` does.
    """
    check_call(type(pipe), call, prompts is not None)
    takes = parameters(type(pipe))
    count = len(indices)
    out: dict[str, Any] = {**call, "generator": generators(indices, seed, stream + "/noise")}
    if isinstance(out.get("negative_prompt"), str):
        out["negative_prompt"] = [out["negative_prompt"]] * count
    if "prompt" in takes:
        out["prompt"] = list(prompts or [])
    elif "class_labels" in takes:
        classes = int(network(pipe).config.get("num_embeds_ada_norm", 1000))
        out["class_labels"] = [i % classes for i in indices] if prompts is None else [_label(pipe, p) for p in prompts]
    else:
        out["batch_size"] = count
    if "latents" in takes:
        shape = latent_shape(pipe, call)
        if shape is not None:
            draws = [torch.randn(shape, generator=g) for g in generators(indices, seed, stream + "/initial")]
            parameter = next(network(pipe).parameters())
            out["latents"] = torch.stack(draws).to(parameter.device, parameter.dtype)
    out["output_type"] = "pt" if "prompt" in takes else "np"
    return out


def _label(pipe: Pipeline, prompt: str) -> int:
    if prompt.strip().isdigit():
        return int(prompt)
    return pipe.get_label_ids([prompt])[0]


def images_of(output: Any) -> Tensor:
    """A pipeline's output -> images (B, 3, H, W), float32, in [0, 1]."""
    images = output.images
    if not isinstance(images, Tensor):
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    images = images.float().clamp(0, 1)
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


@dataclass
class Count:
    """How many samples went through the network, calls weighted by their batch."""

    evaluations: int = 0


@contextmanager
def counted(pipe: Pipeline) -> Iterator[Count]:
    """Count network evaluations inside the block; classifier-free guidance's doubled batch counts twice."""
    count = Count()

    def hook(module: torch.nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 1)
        count.evaluations += len(first)

    handle = network(pipe).register_forward_hook(hook, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()
