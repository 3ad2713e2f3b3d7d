"""Feature extractors for clips and sounds, selected by name; `eval.config.media_names` lists them.

"FVD" and "FAD" are not the names of one figure: they depend on the network. A figure is therefore always named after
the network that it was computed with, such as FVD-i3d@2048 or FAD-clap@1k.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from eval.config.media_names import MEDIA_FEATURES, check_features
from eval.features.embedded_judges import judge_features
from eval.features.extractors import Extractor, extractor, family_extractor
from eval.features.i3d import i3d_features
from eval.features.light_features import motion_features, spectrum_features
from eval.features.media_models import clap_features, videomae_features
from eval.features.vggish import vggish_features
from teachers.loading.embedded import EMBEDDED
from teachers.loading.registry import feature_models
from teachers.media import Audio, Image, Medium, Video
from teachers.support.keys import content


def extractor_for(
    name: str,
    medium: Medium,
    device: torch.device | str = "cpu",
    weights: Path | None = None,
    allow_pickle: bool = False,
) -> Extractor:
    """Load the feature extractor `name` for samples of any medium.

    Args:
        name: A name of `eval.features.extractors` for images, a key of `MEDIA_FEATURES` for clips and sounds.
        medium: The medium of the samples.
        device: The device of its network.
        weights, allow_pickle: As for `eval.features.extractors.extractor`.

    Raises:
        ValueError: If the name is unknown, is for another medium, or its weights cannot be used.
    """
    declared = feature_models()
    check_features(name, medium.name, declared)
    if isinstance(medium, Image):
        return extractor(name, device, weights, allow_pickle)
    if name in declared:
        return family_extractor(name, medium, device)
    return media_extractor(name, medium, device)


def media_extractor(name: str, medium: Medium, device: torch.device | str = "cpu") -> Extractor:
    """Load the feature extractor `name` for samples of `medium`.

    Args:
        name: A key of `MEDIA_FEATURES`, with "=" and a source where they have one, such as "i3d=rgb_imagenet.pt".
        medium: The medium of the samples, with their size and rate.
        device: The device of its network.

    Raises:
        ValueError: If the name is unknown, is for another medium, or its weights cannot be used.
    """
    check_features(name, medium.name)
    kind, _, source = name.partition("=")
    if kind == "frames":
        return _frames(source, medium, torch.device(device))
    if kind in EMBEDDED:
        return Extractor(kind, *judge_features(kind, device), medium=medium)
    weights = content(source) if source else ""
    made = _function(kind, source, medium, torch.device(device))
    return Extractor(kind, made, weights, medium=medium, label=MEDIA_FEATURES[kind].label)


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


def _frames(source: str, medium: Medium, device: torch.device) -> Extractor:
    """The features of images, averaged over the frames of a clip."""
    images = extractor(source, device)

    def features(clips: Tensor) -> Tensor:
        frames = clips.transpose(1, 2).flatten(0, 1)
        each = torch.cat([images(part) for part in frames.split(64)])
        return each.unflatten(0, clips.shape[:1] + clips.shape[2:3]).mean(dim=1)

    made = Extractor(f"frames={images.name}", features, images.weights, images.declared_dimensions)
    return replace(made, medium=medium, label=f"FVD-frames-{images.name}")
