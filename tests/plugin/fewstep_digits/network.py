"""A small vision transformer made of `nn.TransformerEncoderLayer`, as a diffusers model."""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class DigitsTransformer(ModelMixin, ConfigMixin):
    """Predicts the flow, noise - image, of noisy images (B, in_channels, sample_size, sample_size).

    The timestep and the digit are two tokens before those of the patches. The digit `num_classes` is the null class.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 8,
        in_channels: int = 1,
        num_classes: int = 10,
        patch_size: int = 2,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
    ) -> None:
        super().__init__()
        side = sample_size // patch_size
        self.patch = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.position = nn.Parameter(0.02 * torch.randn(1, side**2, width))
        self.digit = nn.Embedding(num_classes + 1, width)
        self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.output = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, in_channels * patch_size**2))

    def forward(self, noisy: Tensor, timestep: Tensor, digit: Tensor) -> Tensor:
        """The flow, shape of `noisy`, at timesteps (B,) from 0 for clean images to 1000 for noise."""
        frequencies = torch.arange(16, device=noisy.device, dtype=torch.float32)  # slow enough for sCM
        features = torch.cos(math.pi / 1000 * timestep.float()[:, None] * frequencies).to(noisy.dtype)
        patches = self.patch(noisy).flatten(2).mT + self.position
        tokens = torch.cat([self.time(features)[:, None], self.digit(digit)[:, None], patches], dim=1)
        patches = self.output(self.encoder(tokens)[:, 2:]).mT
        side = self.config.sample_size // self.config.patch_size
        return nn.functional.pixel_shuffle(patches.unflatten(2, (side, side)), self.config.patch_size)
