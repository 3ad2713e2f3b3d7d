"""Loads any diffusers pipeline: checks of its files, precision, and corrections of what diffusers gets wrong."""

import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor

from eval.pipelines.networks import Pipeline
from eval.pipelines.signatures import parameters, pipeline_class
from teachers.loading import registry, source
from teachers.loading.inspection import check_networks_stored, stored_components
from teachers.loading.trial import check_fit_once
from teachers.support.errors import reads

IMAGENET = 1000  # classes; also the number of their null class


@reads
def check_pipeline(folder: Path, allow_pickle: bool = False) -> None:
    """Check everything that a pipeline's files name, before any pipeline is loaded.

    Args:
        folder: The pipeline's folder.
        allow_pickle: Whether pickled weights are read where there are no safetensors files.

    Raises:
        ValueError: If the pipeline names code outside installed packages, files outside its folder, or pickles.
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
        ValueError: If its class is unknown (`pipeline_class`), or it cannot be loaded.
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
