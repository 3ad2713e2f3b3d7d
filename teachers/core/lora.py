"""A student that is an adapter as the weights of a LoRA file, in peft's names, for stock pipelines to load."""

from collections.abc import Sequence

import torch
from torch import Tensor

from teachers.core.denoiser import Denoiser
from teachers.core.few_step import time_embeddings
from teachers.networks.adapters import Adapted


@torch.no_grad()
def lora_weights(denoiser: Denoiser, times: Sequence[float], told: Tensor) -> dict[str, Tensor]:
    """`{layer}.lora_A.weight` (r, inputs...) and `{layer}.lora_B.weight` (outputs, r, ...), for a scale of 1.

    Low-rank changes are as they were trained. The first layer of the time embedding was trained whole, clock and all;
    here it has the smallest change with which the teacher's, told the N timesteps `told`, gives what the student's own
    gives at the N angles `times`: one of rank N, exact there and only there (as `few_step.bake_timesteps`).
    """
    network = denoiser.network
    assert isinstance(network, Adapted)
    weights: dict[str, Tensor] = {}
    for path, pair in network.low_rank.items():
        for side, weight in pair.named_parameters():  # A.weight, B.weight
            weights[f"{path.replace('/', '.')}.lora_{side}"] = weight
    with network.on() as base:
        names = {id(module): name for name, module in base.named_modules()}
        device = next(network.parameters()).device
        asked = denoiser.timestep_input(torch.tensor(times, dtype=torch.float64)).to(device)
        told = told.to(device, torch.float32)
        for (project, embedding), native in zip(time_embeddings(base), network.lora_base.native, strict=True):
            given = project(told)
            change = embedding.linear_1(project(asked)) - native(given)  # (N, hidden)
            name = f"{names[id(embedding)]}.linear_1"
            weights[f"{name}.lora_A.weight"] = torch.linalg.pinv(given.double().T).float()
            weights[f"{name}.lora_B.weight"] = change.T
    return {name: weight.detach().contiguous().clone() for name, weight in weights.items()}
