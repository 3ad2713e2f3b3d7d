"""The weights of a LoRA file, with peft's names, from a student that is a LoRA adapter."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from teachers.core.denoiser import Denoiser
from teachers.core.time_embedding import time_embeddings
from teachers.networks.adapters import Adapted


@torch.no_grad()
def lora_weights(denoiser: Denoiser, times: Sequence[float], timesteps: Tensor) -> dict[str, Tensor]:
    """The LoRA weights of a student for the teacher's stock pipeline.

    Low-rank changes are stored as they were trained. The first layer of the time embedding is trained as a whole, and
    its time input may be rescaled. The file stores the smallest change of the teacher's layer that gives the student's
    outputs for its N angles at the pipeline's N timesteps. That change has rank N and is exact at those timesteps only
    (see `time_embedding.bake_timesteps`).

    Args:
        denoiser: A student whose network is `Adapted`.
        times: Angles in radians, N of them.
        timesteps: Timesteps that the pipeline passes to the network at these angles, (N,).

    Returns:
        `{layer}.lora_A.weight` (rank, inputs, ...) and `{layer}.lora_B.weight` (outputs, rank, ...), for a scale of 1.
    """
    network = denoiser.network
    assert isinstance(network, Adapted)
    weights: dict[str, Tensor] = {}
    for path, pair in network.low_rank.items():
        for side, weight in pair.named_parameters():  # A.weight, B.weight
            weights[f"{path.replace('/', '.')}.lora_{side}"] = weight
    with network.activate() as base:
        names = {id(module): name for name, module in base.named_modules()}
        device = next(network.parameters()).device
        trained = denoiser.timestep_input(torch.tensor(times, dtype=torch.float64)).to(device)
        timesteps = timesteps.to(device, torch.float32)
        base_layers: Sequence[Any] = network.lora_base.base_time_layers
        embeddings = time_embeddings(base) if base_layers else []
        for embedding, base_layer in zip(embeddings, base_layers, strict=True):
            features, trained_features = embedding.features(timesteps), embedding.features(trained)
            if "timestep_cond" in denoiser.defaults:  # the pipeline's call passes the same guidance scale
                assert embedding.guidance_layer is not None
                offset = embedding.guidance_layer(denoiser.defaults["timestep_cond"].to(features))
                features, trained_features = features + offset, trained_features + offset
            change = embedding.layer(trained_features) - base_layer(features)  # (N, hidden)
            name = f"{names[id(embedding.owner)]}.{embedding.child}"
            down, up = torch.linalg.pinv(features.double().T).float(), change.T
            others = (~features.any(0)).nonzero()[:, 0]  # inputs other than features of the timestep
            if len(others):
                selection = torch.eye(features.shape[1], device=device)[others]
                down = torch.cat([down, selection])
                up = torch.cat([up, (embedding.layer.weight - base_layer.weight)[:, others]], dim=1)
            weights[f"{name}.lora_A.weight"] = down
            weights[f"{name}.lora_B.weight"] = up
    return {name: weight.detach().contiguous().clone() for name, weight in weights.items()}
