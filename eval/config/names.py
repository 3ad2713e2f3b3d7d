"""Names of feature extractors and models, for command lines and recipes. Nothing here imports torch."""

from dataclasses import dataclass

CLIP = "openai/clip-vit-base-patch16"  # the model of --clip without a value
INCEPTION_MODES = ("clean", "legacy_tensorflow", "legacy_pytorch")  # clean-fid's modes, which differ in resizing


@dataclass(frozen=True)
class VisionModel:
    """A family of vision models.

    Attributes:
        label: Its name in figures.
        source: Its default checkpoint.
    """

    label: str
    source: str


VISION_MODELS = {
    "dinov2": VisionModel("DINOv2", "facebook/dinov2-large"),
    "clip": VisionModel("CLIP", "openai/clip-vit-large-patch14"),
}
FEATURES = ("pocket", *INCEPTION_MODES, *VISION_MODELS, "pixels")
PICKLES_ALLOWED = (
    "Pickled weights were allowed (--allow-pickle): pipelines, feature extractors and CLIP models without safetensors "
    "files were read from pickles."
)
