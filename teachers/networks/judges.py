"""What the small networks that judge the embedded teachers' samples have in common."""

from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file
from torch import nn

Judge = TypeVar("Judge", bound=nn.Module)


def block(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
    """A convolution with batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def load_frozen(judge: Judge, path: Path) -> Judge:
    """Load weights from safetensors in half precision into a float32 network, and freeze it in eval mode."""
    judge.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    return judge.eval().requires_grad_(False)
