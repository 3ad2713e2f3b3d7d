"""`Contract`: what a teacher family declares about its pipeline, its network and its evaluation."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from teachers.loading.source import Pipelines
from teachers.media import Image, Medium

# diffusers' names of call arguments, which a pipeline may rename with `Contract.call_names`.
CALL_NAMES = (
    "prompt",
    "class_labels",
    "batch_size",
    "num_inference_steps",
    "guidance_scale",
    "generator",
    "latents",
    "output_type",
)


@dataclass(frozen=True)
class FeatureModel:
    """A loaded feature extractor, for `Contract.feature_models`.

    Attributes:
        features: Maps samples in the judged range, such as images (B, 3, H, W) in [0, 1], to features (B, D).
        dimensions: D.
        weights: The file or folder that the features depend on; its contents are part of the key of cached results.
        judge: Maps samples and their B prompts to (B,): 1 if the sample is what the prompt requests, 0 if not, NaN if
            that is unknown. None: the prompt agreement is not measured.
        medium: The name of the samples' medium: "image", "video" or "audio".
    """

    features: Callable[[Tensor], Tensor]
    dimensions: int
    weights: Path
    judge: Callable[[Tensor, list[str]], Tensor] | None = None
    medium: str = "image"


class Contract:
    """The contract between a teacher family and the rest of the project.

    The pipeline:
        - It is a class in `pipelines` with another name than diffusers' pipelines. `save_pretrained` and
          `from_pretrained` restore it; its networks are `ModelMixin`s with `ConfigMixin`.
        - It has the components `network` and `scheduler`. The scheduler's class and config define the noise schedule
          and the prediction type (`teachers.core.schedule.schedule`).
        - Its `__call__` takes `prompt` (a list of strings), `class_labels` (a list of numbers) or `batch_size`. It may
          take `num_inference_steps`, `guidance_scale`, `generator` (a list with one for each sample), `latents`
          (standard normal noise, (B, *shape)) and `output_type`. `call_names` renames any of them.
        - It returns samples as `medium.received` takes them, such as an object with `images`.

    The family:
        - `condition(prompts)` equals what the pipeline passes to its network.
        - `decode(x0)` equals the pipeline's images, scaled to [-1, 1], for x0 of unit variance.
        - `pipeline(student, times)` with the arguments `calls(n, times[:n])` gives the samples of
          `teachers.core.sampling.sample`.
        - `denoiser.velocity` has an exact forward-mode derivative (`distill.methods.jvp`).

    `problems` tests what can be seen from the classes. `fewstep check PATH` tests the rest with the teacher at PATH.

    Attributes:
        guided: Whether classifier-free guidance applies. Families whose pipelines take prompts without it override
            `takes_prompts` and `prompted`.
        example_prompt: A prompt that `condition` takes, for checks of shapes.
        exports: Whether students of this family can be exported as diffusers pipelines.
        pipelines: The pipeline classes that the family takes. `teacher.family: auto` selects the family by them; a
            subclass that inherits them is selected by name only. Empty: the family is only for use from Python.
        network: Name of the pipeline's component that denoises.
        components: Classes of the pipeline's components from packages other than diffusers, transformers, and the
            packages of the family and of its pipelines. Classes of no other package are loaded.
        call_names: The pipeline's names of call arguments by diffusers' names (`CALL_NAMES`), such as
            {"num_inference_steps": "steps"}.
        sigma_data: The default of `teacher.sigma_data`: standard deviation of the native latents or pixels.
        takes_edm: Whether the pipelines can sample EDM's schedule, whose scheduler has its own sigma_data.
        feature_layer: Name of the network's submodule whose tokens (B, N, C) or maps (B, C, ...) DMD's discriminator
            reads; None: the middle of its blocks, if it has a child with a usual name.
        stream: Which of several outputs of that submodule belongs to the sample, not to the prompt: 0 for the first,
            -1 for the last.
        medium_class: The class of `medium`: `Image`, `Video` or `Audio`.
        output_type: The `output_type` with which pipelines that take prompts return samples in the judged range.
        size_keys: The keys that `teacher.size` of a recipe may have; empty if the pipeline alone determines the size.
        feature_models: Feature extractors for evaluations of this family's samples, by name: functions of a device.
        default_features: The extractor that `evaluation.features: auto` selects; None: one that needs no weights.
        options: Further arguments of `from_pretrained`.
        text_widths: Keys of the network's config that must be the width of the embeddings of text encoders, with the
            names of these components. Widths of several are added up. A dotted key names an entry of a list, such as
            "channels.0".
        encoder_components: How the names of the components begin whose weights "condition" and "encode" read. Results
            are computed again if these, or any configuration, change. A family outside this project that does not
            declare it computes them again if anything changes.
        fewest_steps: The smallest number of steps at which the teacher's own pipeline begins at pure noise and ends at
            finite values.
        ignores_guidance: Whether exported pipelines ignore `guidance_scale`.
        source: The arguments of the pipeline's call that receive a source image and, if it takes one, a mask:
            ("image",) or ("image", "mask_image"); empty for pipelines without source images.
        source_channels: Channels of the network's input after those of the noisy latents, for the source image.
        pads_prompts: Whether the stock pipeline pads the prompts of a batch to the longest, so that its samples depend
            on the other prompts of a batch. `condition` then encodes each prompt as the pipeline does without others.
        guidance_has_momentum: Whether the stock pipeline's guidance also depends on its earlier steps. `velocity` has
            that of the first step.
        refuses_steps: Whether exported pipelines raise an error for unsupported numbers of steps.
    """

    guided: ClassVar[bool] = True
    example_prompt: ClassVar[str] = ""
    exports: ClassVar[bool] = True
    pipelines: ClassVar[Pipelines] = ()
    network: ClassVar[str] = "transformer"
    components: ClassVar[tuple[type[Any], ...]] = ()
    call_names: ClassVar[Mapping[str, str]] = {}
    sigma_data: ClassVar[float] = 1.0
    takes_edm: ClassVar[bool] = False
    feature_layer: ClassVar[str | None] = None
    stream: ClassVar[int] = -1
    medium_class: ClassVar[type[Medium]] = Image
    output_type: ClassVar[str] = "pt"
    size_keys: ClassVar[tuple[str, ...]] = ()
    feature_models: ClassVar[Mapping[str, Callable[[torch.device], FeatureModel]]] = {}
    default_features: ClassVar[str | None] = None
    options: ClassVar[dict[str, Any]] = {}
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    encoder_components: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    fewest_steps: ClassVar[int] = 1
    ignores_guidance: ClassVar[bool] = True
    refuses_steps: ClassVar[bool] = True
    source: ClassVar[tuple[str, ...]] = ()
    source_channels: ClassVar[int] = 0
    pads_prompts: ClassVar[bool] = False
    guidance_has_momentum: ClassVar[bool] = False

    @classmethod
    def takes_prompts(cls, path: str | None) -> bool:
        """Whether a pipeline takes prompts or class numbers. No weights are read.

        Args:
            path: The pipeline, as `load` takes it.
        """
        return cls.guided

    @property
    def prompted(self) -> bool:
        """Whether the teacher's condition depends on prompts, or on class numbers."""
        return self.guided

    @classmethod
    def check_guidance(cls, guidance: float) -> None:
        """Check that the family's pipelines can be guided at a scale; by default they can at all scales.

        Args:
            guidance: The scale in the recipe, in diffusers' convention (1.0: none).

        Raises:
            ValueError: If they cannot.
        """

    @classmethod
    def problems(cls) -> list[str]:
        """What the classes of the family lack; empty if they fulfil the contract as far as classes show it."""
        found = []
        if missing := sorted(getattr(cls, "__abstractmethods__", ())):
            found.append(f"{cls.__name__} must implement {', '.join(missing)}")
        if unknown := sorted(set(cls.call_names) - set(CALL_NAMES)):
            found.append(f"{cls.__name__}.call_names must have keys of {', '.join(CALL_NAMES)}, got {unknown[0]!r}")
        models = cls.feature_models
        if not isinstance(models, Mapping) or not all(isinstance(k, str) and callable(v) for k, v in models.items()):
            found.append(f"{cls.__name__}.feature_models must have a function of a device for each name")
        for kind in cls.pipelines:
            components = set(inspect.signature(kind.__init__).parameters)
            for name in (cls.network, "scheduler"):
                if name not in components:
                    found.append(f"{kind.__name__} must have the component {name!r}")
            arguments = inspect.signature(kind.__call__).parameters
            for name in (*cls.call_names.values(), *cls.source):
                if name not in arguments:
                    found.append(f"{kind.__name__}.__call__ has no argument {name!r}, which {cls.__name__} names")
            inputs = {cls.call_names.get(name, name) for name in ("prompt", "class_labels", "batch_size")}
            if not inputs & set(arguments):
                found.append(
                    f"{kind.__name__}.__call__ must take prompt, class_labels or batch_size; name them in "
                    f"{cls.__name__}.call_names if they are called otherwise"
                )
        return found
