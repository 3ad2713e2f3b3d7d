"""A small clothing classifier: the offline judge of prompt agreement, and the offline feature extractor.

Trained by `benchmarks.pocket.make` on real photographs. Its 64 penultimate features stand in for Inception's where no
Inception weights are at hand; figures made with it say so in their name ("pocket").
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FEATURES = 64


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Classifier(nn.Module):
    """Images (B, 3, 32, 32) in [0, 1] -> logits (B, 10); `features` stops one layer earlier at (B, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(1, 24, 1), _block(24, 48, 2), _block(48, 48, 1), _block(48, 96, 2), _block(96, 96, 1)
        )
        self.project = nn.Linear(96, FEATURES)
        self.head = nn.Linear(FEATURES, 10)

    def features(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (3, 32, 32):
            raise ValueError(
                f"the pocket classifier judges RGB images of 32 x 32 pixels, not {tuple(images.shape[1:])}; "
                "choose another feature extractor for this pipeline"
            )
        grey = images.mean(dim=1, keepdim=True) * 2 - 1
        return torch.relu(self.project(self.body(grey).mean(dim=(2, 3))))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def load_classifier(path: Path) -> Classifier:
    """The trained classifier at `path` (safetensors, half precision) in float32, frozen and in eval mode."""
    classifier = Classifier()
    classifier.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    return classifier.eval().requires_grad_(False)


def rgb01(images: Tensor) -> Tensor:
    """Grey images (B, 1, H, W) in [-1, 1] -> RGB in [0, 1]."""
    return ((images + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)
