"""The time embeddings of a network: the features of the timestep, and the first linear layer that reads them."""

from dataclasses import dataclass

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.transformers.transformer_kandinsky import Kandinsky5TimeEmbeddings
from torch import Tensor, nn

FEATURES = ("timesteps_proj", "time_proj")  # Wan has both; its `time_proj` is a linear layer after its embedding
LAYERS = ("time_embedding", "timestep_embedder", "time_embedder", "timestep_proj")


class Unscaled(nn.Module):
    """The features of a timestep for a network that receives a part of it and multiplies it again.

    Args:
        features: The features of the part.
        scale: The factor, such as 1000 for a timestep in [0, 1].
    """

    def __init__(self, features: nn.Module, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = features, scale

    def forward(self, timesteps: Tensor) -> Tensor:
        """Features (B, F) of timesteps (B,) before they are divided."""
        features: Tensor = self.inner(timesteps / self.scale)
        return features


class Frequencies(nn.Module):
    """The features of Kandinsky 5: cosines and sines of a timestep times frequencies (F,)."""

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.frequencies = frequencies

    def forward(self, timesteps: Tensor) -> Tensor:
        """Features (B, 2 F) of timesteps (B,)."""
        angles = torch.outer(timesteps.float(), self.frequencies.to(timesteps.device))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


@dataclass(frozen=True, eq=False)
class TimeEmbedding:
    """One time embedding of a network.

    Attributes:
        features: Maps timesteps (B,) to features (B, F), sinusoidal in most networks.
        owner: The module that holds the layers after the features.
        child: The name of the first linear layer in `owner`.
    """

    features: nn.Module
    owner: nn.Module
    child: str

    @property
    def layer(self) -> nn.Linear:
        """The first linear layer, which reads the features."""
        layer: nn.Linear = getattr(self.owner, self.child)
        return layer

    @property
    def guidance_layer(self) -> nn.Linear | None:
        """The layer that adds an embedded guidance scale to the features; None if there is none."""
        layer: nn.Linear | None = getattr(self.owner, "cond_proj", None)
        return layer


def find_time_embeddings(network: nn.Module) -> list[TimeEmbedding]:
    """The time embeddings of a network: one in most networks of diffusers, one for each block in DiT, or none."""
    found = []
    for name, module in network.named_modules():
        parts = dict(module.named_children())
        # ACE-Step; `time_embed_r` reads the difference of two timesteps, which is zero here
        if isinstance(parts.get("time_sinusoid"), nn.Module) and not name.endswith("_r"):
            found.append(TimeEmbedding(parts["time_sinusoid"], module, "linear_1"))
            continue
        if isinstance(module, Kandinsky5TimeEmbeddings):
            found.append(TimeEmbedding(Frequencies(module.freqs), module, "in_layer"))
            continue
        features = next((parts[key] for key in FEATURES if not isinstance(parts.get(key), nn.Linear | None)), None)
        owner = next((parts[key] for key in LAYERS if key in parts), None)
        if features is None or owner is None:
            continue
        scale = features.scale if isinstance(features, Timesteps) else getattr(features, "time_factor", 1.0)
        if scale != 1:
            features = Unscaled(features, scale)
        if isinstance(owner, TimestepEmbedding):
            found.append(TimeEmbedding(features, owner, "linear_1"))
        elif isinstance(owner, nn.Sequential) and len(owner) and isinstance(owner[0], nn.Linear):
            found.append(TimeEmbedding(features, owner, "0"))
    return found
