"""I3D, the network of FVD: Inception-v1 with three-dimensional convolutions, trained on Kinetics-400.

Sources: Carreira and Zisserman, "Quo vadis, action recognition?" (arXiv 1705.07750), figure 3 and table 1; Szegedy et
al., "Going deeper with convolutions" (arXiv 1409.4842), table 1; FVD: Unterthiner et al. (arXiv 1812.01717), which
uses the logits, averaged over time.

The parameters have the names of the weights file rgb_imagenet.pt of the widely used PyTorch port. The weights are not
part of this package and cannot be downloaded by it. The architecture was checked for its shapes and its number of
parameters only, with random weights: values of FVD-i3d were not compared with those of another implementation.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.features.weight_files import load_weights

SIZE = 224  # pixels per side of the network's input
CLASSES = 400
LEAST_FRAMES = 9  # with fewer, nothing is left to average over time
BATCH = 4  # clips at a time
# Channels of each block's branches: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 after pooling.
BLOCKS = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


def same_padding(inputs: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Pad with zeros as TensorFlow's SAME does: outputs are inputs / stride, rounded up; odd zeros go to the end."""
    padding: list[int] = []
    for size, k, s in zip(reversed(inputs.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max(0, (-(-size // s) - 1) * s + k - size)
        padding += [total // 2, total - total // 2]
    return F.pad(inputs, padding)


class Unit3D(nn.Module):
    """A convolution, batch normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=0.001)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv3d(same_padding(inputs, self.kernel, self.stride))))


class MaxPool(nn.Module):
    """Max pooling of values that are not negative, with SAME padding."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, inputs: Tensor) -> Tensor:
        return F.max_pool3d(same_padding(inputs, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """An Inception block with four branches."""

    def __init__(self, inputs: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int) -> None:
        super().__init__()
        self.b0 = Unit3D(inputs, b0)
        self.b1a, self.b1b = Unit3D(inputs, b1a), Unit3D(b1a, b1b, 3)
        self.b2a, self.b2b = Unit3D(inputs, b2a), Unit3D(b2a, b2b, 3)
        self.b3a, self.b3b = MaxPool((3, 3, 3), (1, 1, 1)), Unit3D(inputs, b3b)

    def forward(self, inputs: Tensor) -> Tensor:
        branches = (self.b0(inputs), self.b1b(self.b1a(inputs)), self.b2b(self.b2a(inputs)), self.b3b(self.b3a(inputs)))
        return torch.cat(branches, dim=1)


class I3D(nn.Module):
    """Logits (B, 400) of clips (B, 3, F, 224, 224) in [-1, 1], averaged over time."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit3D(3, 64, 7, 2)
        self.MaxPool3d_2a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit3D(64, 64)
        self.Conv3d_2c_3x3 = Unit3D(64, 192, 3)
        self.MaxPool3d_3a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        for name, channels in BLOCKS.items():
            if name == "Mixed_4b":
                self.MaxPool3d_4a_3x3 = MaxPool((3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                self.MaxPool3d_5a_2x2 = MaxPool((2, 2, 2), (2, 2, 2))
            self.add_module(name, Mixed(*channels))
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(1024, CLASSES, 1)})

    def forward(self, clips: Tensor) -> Tensor:
        features = clips
        for name, layer in self.named_children():
            if name != "logits":
                features = layer(features)
        logits: Tensor = self.logits["conv3d"](F.avg_pool3d(features, (2, 7, 7), stride=1))
        return logits.mean(dim=(2, 3, 4))


def i3d_features(weights: Path, frames: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Load I3D as a feature function.

    Args:
        weights: A file with the state of the network, such as rgb_imagenet.pt.
        frames: Frames of the clips.
        device: The network's device.

    Returns:
        A function from clips (B, 3, F, H, W) in [0, 1] to logits (B, 400). Frames are resized to 224 x 224, whatever
        their shape, bilinearly and without antialiasing, as for FVD.

    Raises:
        ValueError: If the clips are too short, or the file has other weights.
    """
    if frames < LEAST_FRAMES:
        raise ValueError(f'the features "i3d" must have clips of at least {LEAST_FRAMES} frames, got {frames}')
    with torch.device("meta"):
        network = I3D()
    network = load_weights(network, weights, "I3D, such as rgb_imagenet.pt").to(device)

    def features(clips: Tensor) -> Tensor:
        return torch.cat([logits(part) for part in clips.split(BATCH)])

    def logits(clips: Tensor) -> Tensor:
        eight_bit = clips.clamp(0, 1).mul(255).round().to(device)
        flat = eight_bit.transpose(1, 2).flatten(0, 1)
        resized = F.interpolate(flat, (SIZE, SIZE), mode="bilinear", align_corners=False)
        scaled = resized.unflatten(0, (len(clips), clips.shape[2])).transpose(1, 2) / 127.5 - 1
        values: Tensor = network(scaled)
        return values

    return features
