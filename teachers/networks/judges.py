"""What the small networks that judge the embedded teachers' samples have in common."""

from torch import nn


def block(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
    """A convolution with batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
