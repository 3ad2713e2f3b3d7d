"""Edits of a student's time embedding: baked timesteps for export, rescaled time for sCM, embedded guidance.

- `bake_timesteps` edits the first layer of the time embedding so that the network computes at a scheduler's timesteps
  what the student computes at its angles. It is a minimum-norm edit: there are few equations and many weights.
- `refit_time_embedding` switches a student to rescaled time.
- `add_guidance_embedding` and `ignore_guidance` add an input for the guidance scale to a UNet.
"""

import math
from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from teachers.core.denoiser import Denoiser
from teachers.core.few_step import lcm_timesteps
from teachers.networks.adapters import active_network, merged_copy
from teachers.networks.time_layers import TimeEmbedding, find_time_embeddings


def time_embeddings(network: nn.Module) -> list[TimeEmbedding]:
    """The time embeddings of a diffusers network: one in most networks, one for each block in DiT.

    Args:
        network: A diffusers network.

    Returns:
        The features of timesteps, and the layers that follow them.

    Raises:
        ValueError: If the network has no time embedding of diffusers.
    """
    found = find_time_embeddings(network)
    if not found:
        raise ValueError(
            f"{type(network).__name__} has no time embedding that can be refitted; "
            "train it on its native timesteps (sCM: method.adaptation_steps=0)"
        )
    return found


def has_time_embedding(network: nn.Module) -> bool:
    """Whether a network has a time embedding of diffusers."""
    return bool(find_time_embeddings(network))


@torch.no_grad()
def bake_timesteps(
    denoiser: Denoiser, times: Sequence[float], timesteps: Tensor | None = None, whole: bool = False
) -> nn.Module:
    """Copy the student's network so that it computes at a scheduler's timesteps what the student computes at `times`.

    With e the sinusoidal features, W' e(timesteps) = W e(timestep_input(times)) for the smallest change of W, the first
    linear layer of the time embedding.

    Args:
        denoiser: The student.
        times: Angles in radians, N of them.
        timesteps: The scheduler's timesteps, (N,); by default those of `LCMScheduler`.
        whole: Fit the layer of a student on rescaled time to all native timesteps first, by ridge regression, so that
            the network is nearly right at the others too. `timesteps` must then be the native ones of `times`.

    Returns:
        An ordinary diffusers network that shares no weights with the student's.
    """
    network = merged_copy(denoiser.network)
    device = next(network.parameters()).device
    trained = denoiser.timestep_input(torch.tensor(times, dtype=torch.float64, device=device))
    timesteps = torch.tensor(lcm_timesteps(denoiser.path, len(times))) if timesteps is None else timesteps
    timesteps = timesteps.to(device, torch.float32)
    if "timestep_cond" in denoiser.defaults and not denoiser.guidance_input:
        fold_guidance(network, denoiser.defaults["timestep_cond"])
    if torch.allclose(trained, timesteps, rtol=0, atol=1e-4):
        return network
    if not has_time_embedding(network):
        angles = denoiser.path.angle(timesteps.double()).tolist()
        raise ValueError(
            f"the times of a {type(network).__name__} must be those of its scheduler's timesteps, "
            f"{_listed(angles)} radians, got {_listed(times)}: it has no time embedding of diffusers that could be "
            "changed for others; set the method's times, such as method.second_times"
        )
    for embedding in time_embeddings(network):
        layer, guidance_layer = embedding.layer, embedding.guidance_layer
        target = _outputs(layer, embedding.features(trained))  # (N, hidden)
        if whole and denoiser.time_scale is not None and guidance_layer is None:
            _refit(embedding.features, layer, *_native_grid(denoiser), ridge=1e-4)
        features = embedding.features(timesteps).double()
        change, inputs = (target - _outputs(layer, features)).T, features.T  # (hidden, N) at (features, N)
        if guidance_layer is not None:  # no change along the inputs that an embedded guidance scale adds
            change = torch.cat([change, change.new_zeros(len(change), guidance_layer.in_features)], dim=1)
            inputs = torch.cat([inputs, guidance_layer.weight.double()], dim=1)
        layer.weight.copy_(layer.weight.double() + change @ torch.linalg.pinv(inputs))
    return network


def _outputs(layer: nn.Linear, features: Tensor) -> Tensor:
    """The outputs of a linear layer in float64."""
    outputs = features.double() @ layer.weight.double().T
    return outputs if layer.bias is None else outputs + layer.bias.double()


def _native_grid(denoiser: Denoiser) -> tuple[Tensor, Tensor]:
    """The time inputs that a student was trained on at every native timestep, and these timesteps, in float32."""
    path = denoiser.path
    grid = torch.arange(path.num_train_timesteps, dtype=torch.float64)
    angles = denoiser.inverse_output_angle(path.angle(grid)).clamp(path.t_min, path.t_max)
    return denoiser.timestep_input(angles), grid.float()


def _listed(times: Sequence[float]) -> str:
    return ", ".join(f"{t:.9g}" for t in times)


def guidance_embedding(guidance: Tensor, width: int) -> Tensor:
    """Sinusoidal features of guidance scales, as diffusers' pipelines compute them for a UNet.

    Args:
        guidance: Guidance scales, (B,); 1.0 means none. The features are those of 1000 (guidance - 1).
        width: Number of features.

    Returns:
        Features (B, width) in float32.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=guidance.device) * -(math.log(10000.0) / (half - 1)))
    phase = 1000.0 * (guidance.float() - 1)[:, None] * frequencies
    features = torch.cat([phase.sin(), phase.cos()], dim=1)
    return torch.nn.functional.pad(features, (0, width % 2))


def guidance_width(network: UNet2DConditionModel) -> int:
    """Width of the guidance embedding: half that of the time embedding, rounded down to an even number."""
    return int(network.time_embedding.linear_1.in_features) // 4 * 2


@torch.no_grad()
def add_guidance_embedding(network: UNet2DConditionModel) -> None:
    """Add a trainable input for the guidance scale to a UNet, in place; its weight is zero at first.

    It is narrower than the input of the time embedding, so that `bake_timesteps` can keep it unchanged.
    """
    ignore_guidance(network, guidance_width(network))
    network.time_embedding.cond_proj.requires_grad_(True)


@torch.no_grad()
def fold_guidance(network: nn.Module, embedding: Tensor) -> None:
    """Make the guidance scale of a UNet a constant part of its time embedding, in place, and remove the input for it.

    Args:
        network: A UNet whose time embedding has a `cond_proj`.
        embedding: The scale's `guidance_embedding`, (1, width).
    """
    for time_embedding in time_embeddings(network):
        layer, projection = time_embedding.layer, time_embedding.guidance_layer
        assert projection is not None
        layer.bias.add_(layer.weight @ projection(embedding.to(projection.weight))[0])
        time_embedding.owner.cond_proj = None  # type: ignore[assignment]
    network.register_to_config(time_cond_proj_dim=None)  # type: ignore[operator]


@torch.no_grad()
def ignore_guidance(network: UNet2DConditionModel, width: int = 4) -> None:
    """Add a guidance embedding with zero weight to a UNet, in place, so that pipelines never apply guidance.

    Stock pipelines apply classifier-free guidance if `guidance_scale > 1 and unet.config.time_cond_proj_dim is None`.
    Their default scale is 7.5, which a distilled student must not be called with.

    Args:
        network: The UNet.
        width: Number of input features of the embedding.
    """
    features = network.time_embedding.linear_1.in_features
    projection = nn.Linear(width, features, bias=False).to(network.time_embedding.linear_1.weight)
    projection.weight.zero_()
    network.time_embedding.cond_proj = projection
    network.register_to_config(time_cond_proj_dim=width)


@torch.no_grad()
def refit_time_embedding(denoiser: Denoiser, time_scale: float, ridge: float = 1e-3) -> None:
    """Switch a student to the rescaled time `time_scale * t` and refit its time embedding, in place.

    The first layer of the time embedding is solved by ridge regression over the whole range of angles, so that the
    embedding of the rescaled time approximates the embedding of the native timestep. Training corrects the remaining
    error, which comes from the fast features of native timesteps.

    Args:
        denoiser: The student.
        time_scale: The factor of the rescaled time, in 1 / radians.
        ridge: Strength of the regularisation.
    """
    path = denoiser.path
    angles = torch.linspace(path.t_min, path.t_max, 1000, dtype=torch.float64)
    timesteps = denoiser.timestep_input(angles)
    denoiser.time_scale = time_scale
    rescaled = denoiser.timestep_input(angles)
    with active_network(denoiser.network) as network:
        for embedding in time_embeddings(network):
            _refit(embedding.features, embedding.layer, timesteps, rescaled, ridge)


def _refit(project: nn.Module, layer: nn.Linear, timesteps: Tensor, rescaled: Tensor, ridge: float) -> None:
    """Change `layer` so that its outputs at `rescaled` (N,) approximate its former outputs at `timesteps` (N,)."""
    native, features = (project(steps.to(layer.weight.device)).double() for steps in (timesteps, rescaled))
    if layer.bias is None:
        affine = layer.weight.double()
    else:
        ones = native.new_ones(len(native), 1)
        native, features = (torch.cat([inputs, ones], dim=1) for inputs in (native, features))
        affine = torch.cat([layer.weight, layer.bias[:, None]], dim=1).double()
    target = native @ affine.T
    gram = features.T @ features + ridge * torch.eye(features.shape[1]).to(features)
    solution = torch.linalg.solve(gram, features.T @ target).T
    used = features[:, : layer.in_features].any(0)  # other inputs keep their weights
    layer.weight.copy_(torch.where(used, solution[:, : layer.in_features], layer.weight))
    if layer.bias is not None:
        layer.bias.copy_(solution[:, -1])
