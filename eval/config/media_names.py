"""Names of feature extractors for clips and sounds, for command lines and recipes. Nothing here imports torch."""

from collections.abc import Collection
from dataclasses import dataclass

from eval.config.names import FEATURES


@dataclass(frozen=True)
class MediaFeatures:
    """A kind of features.

    Attributes:
        medium: The medium of its samples: "video" or "audio".
        label: The name of a Frechet distance with them, which names the network; "" for features without a network.
        source: What follows "=" in the name, such as "FILE"; "" if nothing does.
        help: One line that explains them.
    """

    medium: str
    label: str
    source: str
    help: str


MEDIA_FEATURES = {
    "motion": MediaFeatures("video", "", "", "8 x 8 pixels of 4 frames, and how much they change; needs no weights"),
    "pocket-video": MediaFeatures("video", "", "", "features of the pocket video teacher's judge, for its clips only"),
    "frames": MediaFeatures("video", "FVD-frames", "FEATURES", "features of images, averaged over the frames"),
    "i3d": MediaFeatures("video", "FVD-i3d", "FILE", "Kinetics-400 logits of I3D, from the weights rgb_imagenet.pt"),
    "videomae": MediaFeatures(
        "video", "FVD-videomae", "FOLDER", "tokens of a VideoMAE model of transformers, averaged"
    ),
    "spectrum": MediaFeatures("audio", "", "", "mean and deviation of 64 log bands; needs no weights"),
    "pocket-audio": MediaFeatures("audio", "", "", "features of the pocket audio teacher's judge, for its sounds only"),
    "vggish": MediaFeatures("audio", "FAD-vggish", "FILE", "embeddings of VGGish, averaged over windows of 0.96 s"),
    "clap": MediaFeatures("audio", "FAD-clap", "FOLDER", "audio embeddings of a CLAP model of transformers"),
}


WITHOUT_WEIGHTS = {"image": "pixels", "video": "motion", "audio": "spectrum"}  # features by medium
PLURALS = {"image": "images", "video": "clips", "audio": "sounds"}


def check_features(name: str, medium: str, declared: Collection[str] = ()) -> None:
    """Check that features are for samples of a medium, by their name.

    Args:
        name: The name of the features.
        medium: The name of the medium.
        declared: Names of features of installed families, which are checked when they are loaded.

    Raises:
        ValueError: If they are for another medium, or need or have no source; the message lists what is possible.
    """
    kind, _, source = name.partition("=")
    known = MEDIA_FEATURES.get(kind)
    if name in declared or (known is None and medium == "image"):
        return
    choices = ", ".join(media_feature_names(medium) if medium != "image" else FEATURES)
    if known is None:
        raise ValueError(f'unknown feature extractor "{name}" for {PLURALS[medium]}; choose one of {choices}')
    if known.medium != medium:
        raise ValueError(f'the features "{kind}" are not for {PLURALS[medium]}; choose one of {choices}')
    if bool(known.source) != bool(source):
        raise ValueError(
            f'the features "{kind}" must be given as {kind}{f"={known.source}" * bool(known.source)}, got "{name}"'
        )


def media_feature_names(medium: str) -> list[str]:
    """The names of all features for a medium, such as "i3d=FILE"."""
    return [
        f"{name}={features.source}" if features.source else name
        for name, features in MEDIA_FEATURES.items()
        if features.medium == medium
    ]
