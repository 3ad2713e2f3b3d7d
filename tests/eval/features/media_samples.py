"""Random clips and sounds for tests of features."""

import math

import torch

from teachers.media import Audio, Video

CLIP = Video(frames=9, height=16, width=16, rate=8)


SOUND = Audio(channels=1, samples=8000, rate=8000)


CPU = torch.device("cpu")


def clips(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *CLIP.shape, generator=torch.Generator().manual_seed(seed))


def sounds(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *SOUND.shape, generator=torch.Generator().manual_seed(seed)) - 0.5


def tone(frequency: float, rate: int = 8000, samples: int = 8000, level: float = 0.5) -> torch.Tensor:
    return level * torch.sin(2 * math.pi * frequency * torch.arange(samples).double() / rate).float()[None, None]
