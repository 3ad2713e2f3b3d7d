"""Feature extractors for clips and sounds, selected by name; `eval.config.media_names` lists them.

"FVD" and "FAD" are not the names of one figure: they depend on the network. A figure is therefore always named after
the network that it was computed with, such as FVD-i3d@2048 or FAD-clap@1k.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from eval.config.media_names import MEDIA_FEATURES, media_feature_names
from eval.features.extractors import Extractor, extractor
from eval.features.i3d import i3d_features
from eval.features.light_features import motion_features, spectrum_features
from eval.features.media_models import clap_features, videomae_features
from eval.features.vggish import vggish_features
from teachers.media import Audio, Medium, Video
from teachers.support.keys import content

KINDS = {4: "images", 5: "clips", 3: "sounds"}  # by the number of a batch's axes


@dataclass(frozen=True)
class MediumExtractor(Extractor):
    """A feature function for samples of one medium, with float32 features (B, D).

    Attributes:
        medium: The medium: clips (B, 3, F, H, W) in [0, 1], or sounds (B, channels, samples) in [-1, 1].
        label: The name of a Frechet distance without the number of samples; "" for features without a network.
    """

    medium: Medium | None = None
    label: str = ""

    @property
    def dimensions(self) -> int:
        """The number of features D."""
        assert self.medium is not None
        return self.declared_dimensions or int(self(torch.zeros(1, *self.medium.shape)).shape[1])

    def figure(self, count: int, dimensions: int = 0) -> str:
        """The name of a Frechet distance with these features, such as "FVD-i3d@2048"; see `Extractor.figure`."""
        if not self.label:
            return super().figure(count, dimensions)
        named = super().figure(count, dimensions)
        biased = named.partition(", biased")
        short_count = f"{count // 1000}k" if count >= 1000 and count % 1000 == 0 else str(count)
        return f"{self.label}@{short_count}{biased[1]}{biased[2]}"

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> Tensor:
        """Features (B, D). Features of a sample that is not finite are NaN.

        Raises:
            ValueError: If the samples are of another medium or size.
        """
        assert self.medium is not None
        given = KINDS.get(samples.ndim, "a tensor")
        if given != self.medium.plural:
            raise ValueError(
                f'the features "{self.name}" are for {self.medium.plural}, got {given} of shape {tuple(samples.shape)}'
            )
        self.medium.check_shape(samples)
        not_finite = ~samples.isfinite().flatten(1).all(dim=1)
        features = self.function(samples.float().nan_to_num()).float()
        return features.masked_fill(not_finite.to(features.device)[:, None], torch.nan)


def media_extractor(name: str, medium: Medium, device: torch.device | str = "cpu") -> MediumExtractor:
    """Load the feature extractor `name` for samples of `medium`.

    Args:
        name: A key of `MEDIA_FEATURES`, with "=" and a source where they have one, such as "i3d=rgb_imagenet.pt".
        medium: The medium of the samples, with their size and rate.
        device: The device of its network.

    Raises:
        ValueError: If the name is unknown, is for another medium, or its weights cannot be used.
    """
    kind, _, source = name.partition("=")
    known = MEDIA_FEATURES.get(kind)
    choices = ", ".join(media_feature_names(medium.name))
    if known is None:
        raise ValueError(f'unknown feature extractor "{name}" for {medium.plural}; choose one of {choices}')
    if known.medium != medium.name:
        raise ValueError(f'the features "{kind}" are not for {medium.plural}; choose one of {choices}')
    if bool(known.source) != bool(source):
        raise ValueError(
            f'the features "{kind}" must be given as {kind}{f"={known.source}" * bool(known.source)}, got "{name}"'
        )
    if kind == "frames":
        return _frames(source, medium, torch.device(device))
    weights = content(source) if source else ""
    made = _function(kind, source, medium, torch.device(device))
    return MediumExtractor(kind, made, weights, medium=medium, label=known.label)


def _function(kind: str, source: str, medium: Medium, device: torch.device) -> Callable[[Tensor], Tensor]:
    if isinstance(medium, Audio):
        if kind == "spectrum":
            return lambda sounds: spectrum_features(sounds.to(device), medium.rate)
        if kind == "vggish":
            return vggish_features(Path(source), medium.rate, device)
        return clap_features(source, medium.rate, device)
    assert isinstance(medium, Video)
    if kind == "motion":
        return lambda clips: motion_features(clips.to(device))
    if kind == "i3d":
        return i3d_features(Path(source), medium.frames, device)
    return videomae_features(source, device)


def _frames(source: str, medium: Medium, device: torch.device) -> MediumExtractor:
    """The features of images, averaged over the frames of a clip."""
    images = extractor(source, device)

    def features(clips: Tensor) -> Tensor:
        frames = clips.transpose(1, 2).flatten(0, 1)
        each = torch.cat([images(part) for part in frames.split(64)])
        return each.unflatten(0, clips.shape[:1] + clips.shape[2:3]).mean(dim=1)

    made = MediumExtractor(f"frames={images.name}", features, images.weights, images.declared_dimensions)
    return replace(made, medium=medium, label=f"FVD-frames-{images.name}")
