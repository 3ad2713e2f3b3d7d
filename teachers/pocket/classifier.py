"""A small clothing classifier: measures prompt agreement and extracts features without a network connection.

It was trained on real photographs by `benchmarks.pocket.make`. Its 64 penultimate features replace those of Inception
if there are no Inception weights; metrics that use it have "pocket" in their name.
"""

import torch
from torch import Tensor, nn

from teachers.networks.judges import block

FEATURES = 64  # dimension of the features


class Classifier(nn.Module):
    """Classifies images (B, 3, 32, 32) in [0, 1] into ten classes of clothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            block(1, 24, 1), block(24, 48, 2), block(48, 48, 1), block(48, 96, 2), block(96, 96, 1)
        )
        self.project = nn.Linear(96, FEATURES)
        self.head = nn.Linear(FEATURES, 10)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features.

        Args:
            images: RGB images in [0, 1], (B, 3, 32, 32).

        Returns:
            Features, (B, 64).

        Raises:
            ValueError: If the images have another size.
        """
        if images.shape[1:] != (3, 32, 32):
            raise ValueError(
                f"the pocket classifier takes images of shape (3, 32, 32), got {tuple(images.shape[1:])}; "
                "resize them (--size 32) or choose other features (--features)"
            )
        grey = images.mean(dim=1, keepdim=True) * 2 - 1
        return torch.relu(self.project(self.body(grey).mean(dim=(2, 3))))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 3, 32, 32) in [0, 1]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def rgb01(images: Tensor) -> Tensor:
    """Convert grey images (B, 1, H, W) in [-1, 1] to RGB images (B, 3, H, W) in [0, 1]."""
    return ((images + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)
