"""Calls any diffusers pipeline in the same way: equal prompts, equal noise, images in [0, 1], counted evaluations.

The signature of a pipeline's `__call__` determines its inputs: prompts and latents for text-to-image pipelines, class
labels for `DiTPipeline`, neither for `DDPMPipeline`. Each sample has its own random generators, so its noise depends
neither on the batch size nor on the number of steps.
"""

import hashlib
import inspect
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from torch import Tensor

from teachers.loading.inspection import OPTIONAL, check_folder

IMAGENET = 1000  # classes; also the number of their null class
Pipeline: TypeAlias = Any  # a DiffusionPipeline; its components and arguments depend on its class


def load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """Load a pipeline without progress bars and without a safety checker, which would replace images by black ones.

    Args:
        folder: The pipeline's folder.
        device: Where its networks go.
        dtype: The precision of its weights.

    Raises:
        ValueError: diffusers cannot load it.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    check_folder(str(folder))
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype, **absent_components(folder))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"diffusers could not load the pipeline in {folder}: {error}") from error
    finally:
        diffusers.utils.logging.enable_progress_bar()
        transformers.utils.logging.enable_progress_bar()
    if pipe.components.get("safety_checker") is not None:
        pipe.register_modules(safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    correct_null_class(pipe)
    return pipe.to(device)


def absent_components(folder: Path) -> dict[str, None]:
    """The optional components that a pipeline's index names but that have no folder, such as a safety checker."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # diffusers reports it
    return {name: None for name in OPTIONAL if isinstance(index.get(name), list) and not (folder / name).is_dir()}


def correct_null_class(pipe: Pipeline) -> None:
    """Make a `DiTPipeline` with other than 1000 classes use its own null class; diffusers always passes number 1000."""
    transformer = pipe.components.get("transformer")
    classes = getattr(getattr(transformer, "config", None), "num_embeds_ada_norm", None)
    if transformer is None or classes in (None, IMAGENET) or "class_labels" not in parameters(type(pipe)):
        return

    def corrected(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        labels = kwargs.get("class_labels")
        if isinstance(labels, Tensor):
            kwargs = {**kwargs, "class_labels": labels.masked_fill(labels == IMAGENET, int(classes))}
        return args, kwargs

    transformer.register_forward_pre_hook(corrected, with_kwargs=True)


def parameters(kind: type[DiffusionPipeline]) -> set[str]:
    """The names of the arguments of a pipeline class's `__call__`."""
    return set(inspect.signature(kind.__call__).parameters)


def check_call(kind: type[DiffusionPipeline], call: Mapping[str, Any], prompted: bool) -> None:
    """Check a call before any weights are loaded.

    Args:
        kind: The pipeline class.
        call: Call arguments by name.
        prompted: Whether the samples have prompts.

    Raises:
        ValueError: The class has no such argument, needs prompts, or takes none.
    """
    takes = parameters(kind)
    unknown = sorted(set(call) - takes)
    if unknown:
        raise ValueError(f'{kind.__name__} takes no argument "{unknown[0]}"; correct the call in distill.json')
    if prompted and not takes & {"prompt", "class_labels"}:
        raise ValueError(f"{kind.__name__} takes no prompts; evaluate it with --prompts none")
    if not prompted and "prompt" in takes:
        raise ValueError(f"{kind.__name__} needs prompts; name a file of prompts with --prompts")


def pipeline_class(folder: Path) -> type[DiffusionPipeline] | None:
    """The class named in a pipeline's model_index.json, or None if diffusers has no such class.

    Raises:
        ValueError: model_index.json cannot be read.
    """
    file = folder / "model_index.json"
    try:
        name = json.loads(file.read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is not the index of a diffusers pipeline; save the pipeline again ({error})"
        ) from error
    return getattr(diffusers, str(name), None)


def network(pipe: Pipeline) -> Any:
    """The denoising network: the pipeline's `transformer` or `unet`. Raises ValueError if it has neither."""
    for name in ("transformer", "unet"):
        found = pipe.components.get(name)
        if isinstance(found, torch.nn.Module):
            return found
    raise ValueError(f"{type(pipe).__name__} must have a unet or a transformer to be evaluated")


def use_modern_solver(pipe: Pipeline) -> str | None:
    """Replace a pipeline's scheduler by the usual choice for few steps.

    The solver is DPM-Solver++ (2M) (Lu et al., arXiv 2211.01095) with trailing timesteps and a first-order last step.
    Every argument is passed explicitly, because `from_config` loses betas that the old scheduler took from the defaults
    of its class.

    Args:
        pipe: The pipeline, changed in place.

    Returns:
        The solver's name, or None if the scheduler stays: flow matching and others without betas.
    """
    old = pipe.scheduler.config
    if "trained_betas" not in old:
        return None
    pipe.scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=old["num_train_timesteps"],
        trained_betas=pipe.scheduler.betas.tolist(),
        prediction_type=old.get("prediction_type", "epsilon"),
        variance_type=learned if (learned := str(old.get("variance_type"))) in ("learned", "learned_range") else None,
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
    """One CPU generator per sample.

    Args:
        indices: The numbers of the samples.
        seed: The comparison's seed.
        stream: The name of an independent random stream.
    """
    digests = (hashlib.sha256(f"{seed}/{stream}/{i}".encode()).digest() for i in indices)
    # A CPU generator uses 32 bits of its seed.
    return [torch.Generator().manual_seed(int.from_bytes(digest[:4], "little")) for digest in digests]


def latent_shape(pipe: Pipeline, call: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """(channels, height, width) of a pipeline's latents, or None if its network has no sample size (packed latents)."""
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
    """The call arguments that generate a batch of samples.

    Args:
        pipe: The pipeline.
        call: Its call arguments apart from prompts and noise.
        prompts: A prompt for each sample, or None.
        indices: The numbers of the samples, which determine their noise.
        seed: The comparison's seed.
        stream: The name of an independent random stream.

    Raises:
        ValueError: See `check_call`.
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
            noise = [torch.randn(shape, generator=g) for g in generators(indices, seed, stream + "/initial")]
            parameter = next(network(pipe).parameters())
            out["latents"] = torch.stack(noise).to(parameter.device, parameter.dtype)
    out["output_type"] = "pt" if "prompt" in takes else "np"
    return out


def _label(pipe: Pipeline, prompt: str) -> int:
    """The class number of a prompt: a number, or a name that the pipeline knows."""
    classes, text = int(network(pipe).config.get("num_embeds_ada_norm", IMAGENET)), prompt.strip()
    label = int(text) if text.isdecimal() else getattr(pipe, "labels", {}).get(text)
    if label is None or not 0 <= label < classes:
        raise ValueError(
            f"a prompt for this {type(pipe).__name__} must be a number from 0 to {classes - 1} or the name of a class, "
            f"got {prompt!r}"
        )
    return int(label)


def cuda_devices() -> list[int]:
    """The number of the current GPU, for `torch.random.fork_rng`; empty without a GPU."""
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


@contextmanager
def seeded(indices: Sequence[int], seed: int = 0, stream: str = "samples") -> Iterator[None]:
    """A context in which the global random generators depend on a batch only; afterwards they are as before.

    Some pipelines draw noise from the global generators of torch, NumPy or Python, whatever generator they are given.

    Args:
        indices: The numbers of the batch's samples.
        seed: The comparison's seed.
        stream: The name of an independent random stream.
    """
    digest = hashlib.sha256(f"{seed}/{stream}/global/{','.join(map(str, indices))}".encode()).digest()
    number = int.from_bytes(digest[:4], "little")
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(cuda_devices()):
        torch.manual_seed(number)
        np.random.seed(number)
        random.seed(number)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


def images_of(output: Any) -> Tensor:
    """The images of a pipeline's output, (B, 3, H, W), float32, in [0, 1]."""
    images = output.images
    if not isinstance(images, Tensor):
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    images = images.float().clamp(0, 1)
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


@dataclass
class Count:
    """Network evaluations, one for each element of the batch of a call."""

    evaluations: int = 0


@contextmanager
def counted(pipe: Pipeline) -> Iterator[Count]:
    """Count network evaluations inside the block; the doubled batch of classifier-free guidance counts twice."""
    count = Count()

    def hook(module: torch.nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 1)
        count.evaluations += len(first)

    handle = network(pipe).register_forward_hook(hook, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()
