"""Names of feature extractors and models, for command lines and recipes. Nothing here imports torch."""

from dataclasses import dataclass

CLIP = "openai/clip-vit-base-patch16"  # the model of --clip without a value
# names of methods in texts; others are shown as they are
METHOD_TITLES = {
    "dmd": "DMD",
    "sid": "SiD",
    "f_distill": "f-distill",
    "scm": "sCM",
    "rcm": "rCM",
    "lcm": "LCM",
}
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


@dataclass(frozen=True)
class Scorer:
    """A model that `--score` adds, for text-to-image comparisons.

    Attributes:
        label: Its name in sentences.
        source: Its default checkpoint, or None if a folder has to be given.
        width: The size of its embeddings, of CLIP models.
    """

    label: str
    source: str | None = None
    width: int | None = None


SCORERS = {
    "pickscore": Scorer("PickScore", "yuvalkirstain/PickScore_v1", 1024),
    "hpsv2": Scorer("HPSv2", None, 1024),
    "objects": Scorer("object checks", "facebook/detr-resnet-50"),
}
UNSUPPORTED_SCORERS = {
    "image_reward": "ImageReward is not available, because transformers has no class for its BLIP with a reward head; "
    "a metric of your own can load it (docs/how-to/add-a-metric.md)",
    "clip_fid": "CLIP-FID is not a score of --score but the distance of --features clip",
}
FEATURES = ("pocket", *INCEPTION_MODES, *VISION_MODELS, "pixels")
PICKLES_ALLOWED = (
    "Pickled weights were allowed (--allow-pickle): pipelines, feature extractors, CLIP and CLAP models without "
    "safetensors files were read from pickles."
)
