"""The time embeddings of a network: the features of the timestep, and the first linear layer that reads them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ChromaTransformer2DModel
from diffusers.models.embeddings import (
    LuminaCombinedTimestepCaptionEmbedding,
    TimestepEmbedding,
    Timesteps,
    get_timestep_embedding,
)
from diffusers.models.transformers.auraflow_transformer_2d import AuraFlowTransformer2DModel
from diffusers.models.transformers.transformer_kandinsky import Kandinsky5TimeEmbeddings
from diffusers.models.transformers.transformer_krea2 import Krea2TimestepEmbedding
from diffusers.models.transformers.transformer_lumina2 import Lumina2CombinedTimestepCaptionEmbedding
from diffusers.models.transformers.transformer_z_image import TimestepEmbedder as ZImageTimestepEmbedder
from torch import Tensor, nn

FEATURES = ("timesteps_proj", "time_proj")  # Wan has both; its `time_proj` is a linear layer after its embedding
LAYERS = ("time_embedding", "timestep_embedder", "time_embedder", "timestep_proj")


class FlowFeatures(nn.Module):
    """The features of native timesteps in a network that receives another number than the timestep.

    Args:
        function: Maps timesteps (B,) to features (B, F) with the arithmetic of the pipeline and the network.
        width: The number of inputs of the layer, if it has others after the features; they are zero here.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], width: int | None = None) -> None:
        super().__init__()
        self.function, self.width = function, width

    def forward(self, timesteps: Tensor) -> Tensor:
        """Features (B, F) of timesteps (B,)."""
        features = self.function(timesteps)
        if self.width is None:
            return features
        assert features.shape[1] <= self.width
        return F.pad(features, (0, self.width - features.shape[1]))


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
        if (own := _own_features(module)) is not None:
            found.append(own)
            continue
        parts = dict(module.named_children())
        # ACE-Step; `time_embed_r` reads the difference of two timesteps, which is zero here
        if isinstance(parts.get("time_sinusoid"), nn.Module) and not name.endswith("_r"):
            found.append(TimeEmbedding(parts["time_sinusoid"], module, "linear_1"))
            continue
        features = next((parts[key] for key in FEATURES if not isinstance(parts.get(key), nn.Linear | None)), None)
        owner = next((parts[key] for key in LAYERS if key in parts), None)
        if features is None or owner is None:
            continue
        scale = features.scale if isinstance(features, Timesteps) else getattr(features, "time_factor", 1.0)
        if scale != 1:
            features = FlowFeatures(partial(_of_part, features, scale))
        if isinstance(owner, TimestepEmbedding):
            found.append(TimeEmbedding(features, owner, "linear_1"))
        elif isinstance(owner, nn.Sequential) and len(owner) and isinstance(owner[0], nn.Linear):
            found.append(TimeEmbedding(features, owner, "0"))
    return found


def _of_part(features: nn.Module, scale: float, timesteps: Tensor) -> Tensor:
    """The features in a network that receives timesteps / scale and multiplies them again."""
    found: Tensor = features(timesteps / scale)
    return found


def _frequencies(module: Kandinsky5TimeEmbeddings, timesteps: Tensor) -> Tensor:
    """Cosines and sines of timesteps (B,) times frequencies."""
    angles = torch.outer(timesteps.float(), module.freqs.to(timesteps.device))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class OwnFeatures(NamedTuple):
    """How a network of a class computes the features of native timesteps.

    Attributes:
        compute: Maps a module of the class and timesteps (B,) to features (B, F).
        owner: The name of the owner of the first layer within the module; "": the module.
        child: The name of the layer.
    """

    compute: Callable[[Any, Tensor], Tensor]
    owner: str
    child: str


OWN_FEATURES: Mapping[type[nn.Module], OwnFeatures] = {
    Kandinsky5TimeEmbeddings: OwnFeatures(_frequencies, "", "in_layer"),
    Krea2TimestepEmbedding: OwnFeatures(
        lambda module, t: get_timestep_embedding(t / 1000 * 1000.0, module.embed_dim, True, downscale_freq_shift=0),
        "",
        "linear_1",
    ),
    AuraFlowTransformer2DModel: OwnFeatures(
        lambda module, t: module.time_step_embed(t / 1000), "time_step_proj", "linear_1"
    ),
    LuminaCombinedTimestepCaptionEmbedding: OwnFeatures(
        lambda module, t: module.time_proj(1 - t / 1000), "timestep_embedder", "linear_1"
    ),
    Lumina2CombinedTimestepCaptionEmbedding: OwnFeatures(
        lambda module, t: module.time_proj(1 - t / 1000), "timestep_embedder", "linear_1"
    ),
    ZImageTimestepEmbedder: OwnFeatures(
        lambda module, t: module.timestep_embedding((1000 - t) / 1000 * 1000.0, module.frequency_embedding_size),
        "mlp",
        "0",
    ),
    ChromaTransformer2DModel: OwnFeatures(  # this layer also reads which modulation it computes
        lambda module, t: module.time_text_embed.time_proj(t / 1000 * 1000), "distilled_guidance_layer", "in_proj"
    ),
}


def _own_features(module: nn.Module) -> TimeEmbedding | None:
    """The time embedding of a network in `OWN_FEATURES`; None for other modules."""
    own = next((own for kind, own in OWN_FEATURES.items() if isinstance(module, kind)), None)
    if own is None:
        return None
    owner = module.get_submodule(own.owner)
    width = owner.get_submodule(own.child).in_features
    assert isinstance(width, int)
    return TimeEmbedding(FlowFeatures(lambda t: own.compute(module, t), width), owner, own.child)
