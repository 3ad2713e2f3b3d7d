"""Names of features and models, for command lines and recipes. Imports no torch, so that `--help` is fast."""

from dataclasses import dataclass

CLIP = "openai/clip-vit-base-patch16"  # what --clip alone means
INCEPTION_MODES = ("clean", "legacy_tensorflow", "legacy_pytorch")  # clean-fid's, each with its own resizing


@dataclass(frozen=True)
class VisionModel:
    """A family of vision models: its name in figures, and the checkpoint that is used unless another is named."""

    label: str
    source: str


VISION_MODELS = {
    "dinov2": VisionModel("DINOv2", "facebook/dinov2-large"),
    "clip": VisionModel("CLIP", "openai/clip-vit-large-patch14"),
}
FEATURES = ("pocket", *INCEPTION_MODES, *VISION_MODELS, "pixels")
