"""What metrics read: the settings of a comparison, the reference, and the generated samples of each row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from eval.config.names import INCEPTION_MODES, SCORERS
from eval.features.extractors import Extractor
from teachers.media import ANY_IMAGE, Medium

T = TypeVar("T")
Distance = Callable[[Tensor, Tensor], Tensor]  # two batches (B, 3, H, W) in [0, 1] -> (B,)
PromptClassifier = Callable[
    [Tensor, list[str]], Tensor
]  # images (B, 3, H, W) and B prompts -> (B,), see `prompt_judge`

NEEDS = {
    "features": "features of the row's samples; always available",
    "reference": "mean and covariance of the reference's features; always available",
    "images": "the row's first samples; always available",
    "reference_features": "the features of each reference image",
    "inception_features": "features of Inception-v3",
    "prompts": "a prompt for each sample",
    "prompt_classifier": "a classifier that recognizes what a prompt requests",
    "arithmetic_judge": "a judge of a prompt's motion or note without a network",
    "teacher_images": "the teacher's samples from the same noise and prompts",
    "lpips": "the LPIPS network, with its weights on this machine",
    "clip": "a CLIP model, selected with --clip",
    "clap": "a CLAP model, selected with --clap",
    **{name: f"{scorer.label}, selected with --score {name}" for name, scorer in SCORERS.items()},
}


@dataclass(frozen=True)
class Reference:
    """The distribution that samples are compared with.

    Attributes:
        mean: Mean of the features (D,), float64.
        covariance: Covariance of the features (D, D), float64.
        features: The features (N, D) themselves, or None if only the statistics are known.
        note: What a reader of the comparison should know about the reference; None: nothing.
    """

    mean: Tensor
    covariance: Tensor
    features: Tensor | None = None
    note: str | None = None


@dataclass(frozen=True)
class MetricContext:
    """What all rows of one comparison share.

    Attributes:
        samples: Samples of each row.
        seed: Seed of the comparison.
        device: The device for a metric's own networks.
        extractor: The feature extractor.
        dimensions: Dimensions of the features.
        prompts: One prompt for each sample, or None.
        reference: The reference, or None if it is the teacher's own samples, which are not generated yet.
        has_teacher: Whether the comparison has a row of the teacher's usual call.
        lpips: The LPIPS distance, or None if its weights are not on this machine.
        prompt_classifier: Recognizes what a prompt requests, or None.
        arithmetic_judge: Recognizes the motion or note that a prompt requests without a network, or None.
        clip: The CLIP model selected with --clip: a folder or a Hub id.
        clap: The CLAP model selected with --clap: a folder or a Hub id.
        scorers: The models selected with --score, by name (`eval.config.names.SCORERS`): folders or Hub ids.
        allow_pickle: Whether pickled weights are read where there are no safetensors files.
        medium: What all rows sample.
    """

    samples: int
    seed: int
    device: torch.device
    extractor: Extractor
    dimensions: int
    prompts: Sequence[str] | None = None
    reference: Reference | None = None
    has_teacher: bool = True
    lpips: Distance | None = None
    prompt_classifier: PromptClassifier | None = None
    arithmetic_judge: PromptClassifier | None = None
    clip: str | None = None
    clap: str | None = None
    scorers: Mapping[str, str] = field(default_factory=dict)
    allow_pickle: bool = False
    medium: Medium = ANY_IMAGE

    @property
    def reference_images(self) -> int:
        """How many reference images are compared with as many samples; 0 if only statistics are known."""
        if self.reference is None:
            return self.samples
        return 0 if self.reference.features is None else min(self.samples, len(self.reference.features))

    def model_source(self, need: str) -> str:
        """The model that the user named for one of the `NEEDS` "clip", "clap" or a name of `SCORERS`."""
        source = {"clip": self.clip, "clap": self.clap, **self.scorers}[need]
        assert source is not None
        return source

    def available(self) -> set[str]:
        """The `NEEDS` that this comparison meets."""
        conditions = {
            "reference_features": self.reference_images > 0,
            "inception_features": self.extractor.name in INCEPTION_MODES,
            "prompts": self.prompts is not None,
            "prompt_classifier": self.prompt_classifier is not None,
            "arithmetic_judge": self.arithmetic_judge is not None,
            "teacher_images": self.has_teacher,
            "lpips": self.lpips is not None,
            "clip": self.clip is not None,
            "clap": self.clap is not None,
            **{name: name in self.scorers for name in SCORERS},
        }
        return {need for need in NEEDS if conditions.get(need, True)}


@dataclass(frozen=True)
class Row:
    """One row of a comparison after its samples were generated.

    Attributes:
        features: Features of the samples (N, D).
        mean: Mean of the features (D,), float64.
        covariance: Covariance of the features (D, D), float64.
        images: The first samples in the judged range, such as images (K, 3, H, W) in [0, 1], in 8-bit steps; sounds in
            16-bit steps.
        scores: The scores of each `SampleMetric` and `GroupMetric`, by the metric's key.
        reference: The reference of the comparison.
        teacher_images: The teacher's samples from the same noise and prompts, or None if there is no
            teacher, this row is the teacher's, or the sizes differ.
    """

    features: Tensor
    mean: Tensor
    covariance: Tensor
    images: Tensor
    scores: Mapping[str, Tensor]
    reference: Reference
    teacher_images: Tensor | None = None
    _shared: dict[str, Any] = field(default_factory=dict, repr=False)

    def shared(self, name: str, compute: Callable[[], T]) -> T:
        """The value of `compute()`, computed once per row for all metrics that use the same `name`."""
        if name not in self._shared:
            self._shared[name] = compute()
        value: T = self._shared[name]
        return value
