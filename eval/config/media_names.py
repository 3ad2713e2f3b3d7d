"""Names of feature extractors for clips and sounds, for command lines and recipes. Nothing here imports torch."""

from dataclasses import dataclass


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
    "frames": MediaFeatures("video", "FVD-frames", "FEATURES", "features of images, averaged over the frames"),
    "i3d": MediaFeatures("video", "FVD-i3d", "FILE", "Kinetics-400 logits of I3D, from the weights rgb_imagenet.pt"),
    "videomae": MediaFeatures(
        "video", "FVD-videomae", "FOLDER", "tokens of a VideoMAE model of transformers, averaged"
    ),
    "spectrum": MediaFeatures("audio", "", "", "mean and deviation of 64 log bands; needs no weights"),
    "vggish": MediaFeatures("audio", "FAD-vggish", "FILE", "embeddings of VGGish, averaged over windows of 0.96 s"),
    "clap": MediaFeatures("audio", "FAD-clap", "FOLDER", "audio embeddings of a CLAP model of transformers"),
}


def media_feature_names(medium: str) -> list[str]:
    """The names of all features for a medium, such as "i3d=FILE"."""
    return [
        f"{name}={features.source}" if features.source else name
        for name, features in MEDIA_FEATURES.items()
        if features.medium == medium
    ]
