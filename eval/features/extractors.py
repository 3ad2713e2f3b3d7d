"""Feature extractors and prompt judges of images, selected by name; `media_extractors` has those of clips and sounds.

pocket
    64 features of the clothing classifier that ships with the pocket teacher, for images of 32 x 32 only.
clean, legacy_tensorflow, legacy_pytorch
    2048 features of Inception-v3 in the modes of clean-fid (`eval.features.inception`); "inception" means "clean".
dinov2, clip
    Features of a transformers model (`eval.features.transformers_models`), from the Hub or, as dinov2=FOLDER, a folder.
pixels
    Average-pooled RGB, 8 x 8, for images of any size. It needs no weights and is not comparable to FID.

Installed teacher families add further names (`teachers.core.contract.Contract.feature_models`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.config.names import FEATURES, INCEPTION_MODES, VISION_MODELS
from eval.features.embedded_judges import agreement, judge_features
from eval.features.inception import inception_features, resolve_weights
from eval.features.transformers_models import vision_features
from teachers.loading.embedded import EMBEDDED
from teachers.loading.registry import feature_models
from teachers.media import ANY_IMAGE, Image, Medium
from teachers.support.errors import reads
from teachers.support.keys import code, content, key

KINDS = {4: "images", 5: "clips", 3: "sounds"}  # by the number of a batch's axes


@dataclass(frozen=True)
class Extractor:
    """A feature function from samples of one medium to float32 features (B, D).

    Attributes:
        name: Part of the name of every metric that is computed with these features.
        function: Computes the features; it never receives NaN.
        weights: A hash of the network's weights and configuration, and of a plug-in's code, for keys of cached values;
            "" without a network.
        declared_dimensions: The number of features of a family's own extractor, which may take one image size only.
        medium: The medium of the samples with their size: clips (B, 3, F, H, W) in [0, 1] or sounds (B, channels,
            samples) in [-1, 1]. None: images (B, 3, H, W) in [0, 1] of any size.
        label: The name of a Frechet distance with features of clips or sounds without the number of samples; "" for
            features without a network.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    weights: str = ""
    declared_dimensions: int | None = None
    medium: Medium | None = None
    label: str = ""

    @property
    def dimensions(self) -> int:
        """The number of features D."""
        shape = (3, 32, 32) if self.medium is None else self.medium.shape
        return self.declared_dimensions or int(self(torch.zeros(1, *shape)).shape[1])

    def figure(self, count: int, dimensions: int = 0) -> str:
        """The name of a Frechet distance with these features, such as "FID-clean@10k" or "FVD-i3d@2048".

        Args:
            count: The number of samples.
            dimensions: The number of features. With no more samples than features the name says "biased", because the
                sample covariance is singular.
        """
        biased = f", biased (<{dimensions} dimensions)" if count <= dimensions else ""
        short_count = f"{count // 1000}k" if count >= 1000 and count % 1000 == 0 else str(count)
        if self.name in INCEPTION_MODES:
            return f"FID-{self.name}@{short_count}{biased}"
        if self.name in VISION_MODELS:
            return f"FD-{VISION_MODELS[self.name].label}@{short_count}{biased}"
        if self.label:
            return f"{self.label}@{short_count}{biased}"
        return f"Frechet distance ({self.name}@{count}){biased}"

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> Tensor:
        """Features (B, D). Features of a sample that is not finite are NaN.

        Raises:
            ValueError: If the samples are of another medium or size.
        """
        self._check(samples)
        # Rounding to 8 bits inside a function would turn NaN into black.
        not_finite = ~samples.isfinite().flatten(1).all(dim=1)
        features = self.function(samples.float().nan_to_num()).float()
        return features.masked_fill(not_finite.to(features.device)[:, None], torch.nan)

    def _check(self, samples: Tensor) -> None:
        given, shape = KINDS.get(samples.ndim, "a tensor"), tuple(samples.shape)
        expected = "images" if self.medium is None else self.medium.plural
        if given != expected and (self.medium is not None or samples.ndim == 5):
            raise ValueError(f'the features "{self.name}" are for {expected}, got {given} of shape {shape}')
        if self.medium is not None:
            self.medium.check_shape(samples)
        elif samples.ndim != 4 or samples.shape[1] != 3:
            raise ValueError(f"images must have the shape (B, 3, H, W), got {shape}")


@reads
def extractor(
    name: str, device: torch.device | str = "cpu", weights: Path | None = None, allow_pickle: bool = False
) -> Extractor:
    """Load the feature extractor of images `name`.

    Args:
        name: One of the names above.
        device: The device of its network.
        weights: A file of Inception weights; None searches for them (`eval.features.inception.resolve_weights`).
        allow_pickle: Whether pickled weights of vision models are read where there are no safetensors files.

    Raises:
        ValueError: If the name is unknown or the weights are missing.
    """
    if name == "pocket":
        return Extractor(name, *judge_features(name, device))
    if name in ("inception", *INCEPTION_MODES):
        mode = "clean" if name == "inception" else name
        file = resolve_weights(weights)
        return Extractor(mode, inception_features(mode, torch.device(device), file), content(file))
    kind, _, source = name.partition("=")
    if kind in VISION_MODELS:
        function = vision_features(kind, source or None, torch.device(device), allow_pickle)
        return Extractor(kind, function, content(source or VISION_MODELS[kind].source))
    if name == "pixels":
        return Extractor(name, lambda images: F.adaptive_avg_pool2d(images.to(device), 8).flatten(1))
    declared = feature_models()
    if name in declared:
        return family_extractor(name, ANY_IMAGE, device)
    raise ValueError(f'unknown feature extractor "{name}"; choose one of {", ".join((*FEATURES, *declared))}')


def family_extractor(name: str, medium: Medium, device: torch.device | str = "cpu") -> Extractor:
    """The feature extractor `name` of an installed family, for samples of `medium`.

    Raises:
        ValueError: If it is for another medium.
    """
    make = feature_models()[name]
    own = make(torch.device(device))
    if own.medium != medium.name:
        raise ValueError(f'the features "{name}" are for the medium "{own.medium}", got {medium.plural}')
    identity = key(content(own.weights), code(make))
    of = None if isinstance(medium, Image) else medium
    return Extractor(name, lambda samples: own.features(samples.to(device)), identity, own.dimensions, of)


def prompt_judge(name: str, device: torch.device | str = "cpu") -> Callable[[Tensor, list[str]], Tensor] | None:
    """The judge of prompt agreement for the features `name`; None if these features have no classifier.

    Returns:
        A function from samples in the judged range and their B prompts to (B,): 1 if the classifier's prediction is
        all that the prompt requests, 0 if something else, NaN if the prompt requests nothing that is known.
    """
    if name in (declared := feature_models()) and name not in FEATURES:
        judge_of_family = declared[name](torch.device(device)).judge
        return judge_of_family and (lambda images, prompts: judge_of_family(images.float().to(device), prompts).cpu())
    return agreement(name, device) if name in EMBEDDED else None
