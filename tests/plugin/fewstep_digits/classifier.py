"""A classifier of digits: features for Frechet distances, and the judge of prompt agreement."""

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep_digits import CLASSES, FOLDER
from teachers.core.contract import FeatureModel

WEIGHTS = FOLDER / "weights" / "classifier.safetensors"


class Classifier(nn.Module):
    """Logits (B, 10) of images (B, 3, 8, 8) in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU())
        self.output = nn.Linear(32, 10)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, 32)."""
        return self.hidden(images.mean(1).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.features(images))


def load(device: torch.device) -> FeatureModel:
    """The trained classifier, for `Contract.feature_models`."""
    classifier = Classifier()
    classifier.load_state_dict(load_file(WEIGHTS))
    classifier.requires_grad_(False).to(device)

    def judge(images: Tensor, prompts: list[str]) -> Tensor:
        wanted = torch.tensor([label(prompt) for prompt in prompts], device=device)
        return classifier(images).argmax(1).eq(wanted).float()

    return FeatureModel(classifier.features, 32, WEIGHTS, judge)


def label(prompt: str) -> int:
    """The digit that a prompt requests: its numeral or its name.

    Raises:
        ValueError: If there is no such digit.
    """
    text = prompt.strip()
    if text in CLASSES:
        return CLASSES.index(text)
    if not text.isdigit() or int(text) >= len(CLASSES):
        raise ValueError(f"a prompt must be a digit such as 7 or seven, got {prompt!r}")
    return int(text)
