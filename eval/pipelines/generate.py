"""Calls any diffusers pipeline in the same way: equal prompts, equal noise, counted evaluations.

The signature of a pipeline's `__call__` determines its inputs: prompts and latents for text-to-image pipelines, class
labels for `DiTPipeline`, neither for `DDPMPipeline`; a teacher family can declare other names of arguments. Each sample
has its own random generators, so its noise depends neither on the batch size nor on the number of steps.
"""

import hashlib
import inspect
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
from diffusers import ClassifierFreeGuidance, DDIMPipeline, DPMSolverMultistepScheduler
from torch import Tensor

from eval.pipelines.seeds import LATENTS, NOISE, sample_seed
from eval.pipelines.signatures import argument, check_call, parameters, pipeline_class
from teachers.core.schedule import alphas_cumprod, betas, is_shifted, prediction_type
from teachers.loading import registry, source
from teachers.loading.inspection import check_networks_stored, stored_components
from teachers.loading.trial import check_fit_once
from teachers.media import Image
from teachers.support.errors import reads

EACH = ("negative_prompt", "lyrics")  # arguments that pipelines take as one string, or as one for each prompt
IMAGENET = 1000  # classes; also the number of their null class
Pipeline: TypeAlias = Any  # a DiffusionPipeline; its components and arguments depend on its class


@reads
def check_pipeline(folder: Path, allow_pickle: bool = False) -> None:
    """Check everything that a pipeline's files name, before any pipeline is loaded.

    Args:
        folder: The pipeline's folder.
        allow_pickle: Whether pickled weights are read where there are no safetensors files.

    Raises:
        ValueError: The pipeline names other code than that of installed packages, files outside its folder, or pickles.
    """
    kind = pipeline_class(folder)
    index = source.check_trusted(str(folder), (kind, *registry.owners()), kind)
    check_networks_stored(folder, stored_components(index), allow_pickle, quantized=True)


@reads
def load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype, allow_pickle: bool = False) -> Pipeline:
    """Load a pipeline without progress bars and without a safety checker, which would replace images by black ones.

    Args:
        folder: The pipeline's folder.
        device: Where its networks go.
        dtype: The precision of its weights.
        allow_pickle: Whether pickled weights are read where there are no safetensors files.

    Raises:
        ValueError: Its class is unknown (`pipeline_class`), or it cannot be loaded.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        kind = pipeline_class(folder)
        components = inspect.signature(kind.__init__).parameters
        # A dict, because a single dtype leaves the autoencoder in another precision than the network.
        options: dict[str, Any] = {"dtype": {"default": dtype}}
        options |= {"safety_checker": None} if "safety_checker" in components else {}
        options |= {"requires_safety_checker": False} if "requires_safety_checker" in components else {}
        owners = tuple(registry.owners())
        source.check_trusted(str(folder), (kind, *owners), kind)
        if (family := registry.family_of_class(kind)) is not None:
            check_fit_once(str(folder), family)
        pipe = source.load_pipeline(
            (kind,), str(folder), owners=owners, pickles=allow_pickle, quantized=True, **options
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, ValueError) and str(folder) in str(error):
            raise  # a sentence of ours, the same as in `fewstep describe`
        raise ValueError(f"diffusers could not load the pipeline in {folder}: {error}") from error
    finally:
        diffusers.utils.logging.enable_progress_bar()
        transformers.utils.logging.enable_progress_bar()
    pipe.set_progress_bar_config(disable=True)
    correct_null_class(pipe)
    return pipe.to(device)


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


def network(pipe: Pipeline) -> Any:
    """The denoising network: the component that the pipeline's family names, or `transformer` or `unet`.

    Raises:
        ValueError: The pipeline has no such component.
    """
    family = registry.family_of_class(type(pipe))
    names = ("transformer", "unet") if family is None else (family.network,)
    for name in names:
        found = pipe.components.get(name)
        if isinstance(found, torch.nn.Module):
            return found
    raise ValueError(f"{type(pipe).__name__} must have a {' or a '.join(names)} to be evaluated")


def networks(pipe: Pipeline) -> list[torch.nn.Module]:
    """The denoising network, and the one for low noise levels that Wan 2.2 has besides."""
    second = pipe.components.get("transformer_2")
    return [network(pipe), *([second] if isinstance(second, torch.nn.Module) else [])]


def has_guider(pipe: Pipeline) -> bool:
    """Whether a pipeline has its guidance scale in a guider, and not in its call."""
    return isinstance(pipe.components.get("guider"), ClassifierFreeGuidance)


def set_guidance(pipe: Pipeline, guidance: float) -> None:
    """Set the guidance scale of a pipeline that has a guider; the calls of others carry the scale."""
    if has_guider(pipe):
        pipe.register_modules(guider=pipe.guider.new(guidance_scale=guidance))


def network_config(pipe: Pipeline) -> Mapping[str, Any]:
    """The configuration of a pipeline's network by name; empty for a network without one."""
    config = getattr(network(pipe), "config", {})
    return config if isinstance(config, Mapping) else vars(config)


def use_modern_solver(pipe: Pipeline) -> str | None:
    """Replace a pipeline's scheduler by the usual choice for few steps.

    The solver is DPM-Solver++ (2M) (Lu et al., arXiv 2211.01095) with trailing timesteps and a first-order last step.
    Its noise levels are the old scheduler's own table; `from_config` would lose the defaults of the old class.

    Args:
        pipe: The pipeline, changed in place.

    Returns:
        The solver's name, or None if the scheduler stays: that of `DDIMPipeline`, flow matching, tables with a shifted
        signal-to-noise ratio, and others that are not variance preserving.
    """
    old, table = pipe.scheduler.config, alphas_cumprod(pipe.scheduler)
    # DDIMPipeline passes arguments of its own scheduler, and shifted tables belong to video models with own solvers.
    if table is None or isinstance(pipe, DDIMPipeline) or is_shifted(pipe.scheduler):
        return None
    # Latent pipelines drop a learned variance before the scheduler.
    learned = old.get("variance_type") in ("learned", "learned_range") and "vae" not in pipe.components
    pipe.scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=old["num_train_timesteps"],
        trained_betas=betas(table),
        prediction_type=prediction_type(pipe.scheduler),
        variance_type=old["variance_type"] if learned else None,
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
    return [torch.Generator().manual_seed(sample_seed(i, seed, stream)) for i in indices]


def latent_shape(pipe: Pipeline, call: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """(channels, height, width) of the latents of images; None for other media and packed latents.

    Pipelines then draw their noise themselves, with a generator for each sample.
    """
    family = registry.family_of_class(type(pipe))
    if family is not None and family.medium_class is not Image:
        return None
    config = network_config(pipe)
    size, factor = config.get("sample_size"), getattr(pipe, "vae_scale_factor", 1)
    if size is None or "in_channels" not in config:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if "height" in call:
        height = int(call["height"]) // factor
    if "width" in call:
        width = int(call["width"]) // factor
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
    kind = type(pipe)
    check_call(kind, call, prompts is not None)
    count = len(indices)
    usual: dict[str, Any] = {"generator": generators(indices, seed, f"{stream}/{NOISE}")}
    if argument(kind, "prompt"):
        usual["prompt"] = list(prompts or [])
    elif argument(kind, "class_labels"):
        classes = _classes(pipe)
        usual["class_labels"] = (
            [i % classes for i in indices] if prompts is None else [_label(pipe, prompt) for prompt in prompts]
        )
    else:
        usual["batch_size"] = count
    shape = latent_shape(pipe, call) if argument(kind, "latents") else None
    if shape is not None:
        noise = [torch.randn(shape, generator=g) for g in generators(indices, seed, f"{stream}/{LATENTS}")]
        parameter = next(network(pipe).parameters())
        usual["latents"] = torch.stack(noise).to(parameter.device, parameter.dtype)
    usual["output_type"] = "pt" if argument(kind, "prompt") else "np"
    out = dict(call) | {own: value for name, value in usual.items() if (own := argument(kind, name)) is not None}
    for name in EACH:
        if isinstance(out.get(name), str):
            out[name] = [out[name]] * count
    return out


def largest_batch(pipe: Pipeline, wanted: int) -> int:
    """How many samples to generate at once: one if the pipeline would pad the prompts of a batch to the longest."""
    family = registry.family_of_class(type(pipe))
    return 1 if family is not None and family.pads_prompts else wanted


def _classes(pipe: Pipeline) -> int:
    """The number of classes of a class-conditional pipeline."""
    config = network_config(pipe)
    known = (config.get(name) for name in ("num_embeds_ada_norm", "num_class_embeds", "num_classes"))
    return next((int(number) for number in known if number), len(getattr(pipe, "labels", ())) or 1000)


def _label(pipe: Pipeline, prompt: str) -> int:
    """The class number of a prompt: a number, or a name that the pipeline knows."""
    classes, text = _classes(pipe), prompt.strip()
    if text.isdecimal():
        label: int | None = int(text)
    elif hasattr(pipe, "get_label_ids") and not hasattr(pipe, "labels"):
        label = pipe.get_label_ids([text])[0]
    else:
        label = getattr(pipe, "labels", {}).get(text)
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


@dataclass
class Count:
    """Network evaluations, one for each element of the batch of a call."""

    evaluations: int = 0


@contextmanager
def counted(pipe: Pipeline) -> Iterator[Count]:
    """Count network evaluations inside the block; the doubled batch of classifier-free guidance counts twice."""
    count = Count()

    def hook(module: torch.nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        # The sample, since the positions of Flux and the prompts of AnimateDiff's frames have other numbers of rows.
        named = [kwargs[name] for name in ("hidden_states", "sample") if name in kwargs]
        values = (value for value in (*args, *named, *kwargs.values()) if isinstance(value, Tensor))
        count.evaluations += next((len(value) for value in values if value.ndim > 1), 1)

    handles = [part.register_forward_hook(hook, with_kwargs=True) for part in networks(pipe)]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()
