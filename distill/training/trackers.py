"""Experiment trackers: accelerate starts them and logs numbers; pictures go through this module."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from accelerate.tracking import get_available_trackers
from PIL import Image
from torch import Tensor

EXTRA = {"comet_ml": "comet"}  # the names of the extras that install a tracker, where they are not its own


def check_tracker(name: str) -> None:
    """Check that the tracker of a recipe is installed.

    Args:
        name: The recipe's train.tracker.

    Raises:
        ValueError: If it is not; without this check accelerate would train without it.
    """
    if name != "none" and name not in {str(tracker.value) for tracker in get_available_trackers()}:
        extra = EXTRA.get(name, name)
        raise ValueError(
            f'train.tracker={name} needs the package {name}: pip install -e ".[{extra}]", or set '
            "train.tracker=tensorboard"
        )


def log_image(trackers: Sequence[Any], tag: str, picture: Tensor, step: int, caption: str = "") -> None:
    """Log a picture to every tracker.

    Args:
        trackers: accelerate's trackers.
        tag: The picture's name; slashes group names.
        picture: The picture (3, H, W) in [0, 1].
        step: The training step.
        caption: A text beside it; TensorBoard shows it as a text of the same name.
    """
    for tracker in trackers:
        if tracker.name in _IMAGES:
            _IMAGES[tracker.name](tracker, tag, picture, step, caption)


def pixels(picture: Tensor) -> np.ndarray:
    """A picture (3, H, W) in [0, 1] as bytes (H, W, 3)."""
    array: np.ndarray = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return array


def _tensorboard(tracker: Any, tag: str, picture: Tensor, step: int, caption: str) -> None:
    tracker.writer.add_image(tag, picture, step)
    if caption:
        tracker.writer.add_text(tag, caption, step)


def _wandb(tracker: Any, tag: str, picture: Tensor, step: int, caption: str) -> None:
    wandb = importlib.import_module("wandb")
    tracker.tracker.log({tag: wandb.Image(pixels(picture), caption=caption or None)}, step=step)


def _trackio(tracker: Any, tag: str, picture: Tensor, step: int, caption: str) -> None:
    trackio = importlib.import_module("trackio")
    tracker.tracker.log({tag: trackio.Image(pixels(picture), caption=caption or None)}, step=step)


def _mlflow(tracker: Any, tag: str, picture: Tensor, step: int, caption: str) -> None:
    mlflow = importlib.import_module("mlflow")
    folder = tag.replace(" ", "_")
    mlflow.log_image(Image.fromarray(pixels(picture)), f"{folder}/{step:08d}.png")
    if caption:
        mlflow.log_text(caption, f"{folder}/caption.txt")


def _comet(tracker: Any, tag: str, picture: Tensor, step: int, caption: str) -> None:
    tracker.tracker.log_image(Image.fromarray(pixels(picture)), name=tag, step=step, metadata={"caption": caption})


_IMAGES: Mapping[str, Callable[[Any, str, Tensor, int, str], None]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
    "comet_ml": _comet,
}
