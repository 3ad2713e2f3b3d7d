"""Make stock diffusers pipelines run few-step students: noise levels, timesteps and guidance.

diffusers' `LCMScheduler` implements multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1):
denoise, then add noise for the next level. Its N steps always use the timesteps (i + 1) T / N - 1. A student samples at
angles of its own, so the export changes the table of noise levels and the time embedding; users pass no timesteps.

- `consistency_scheduler` changes the table of noise levels so that these timesteps have the student's angles.
- `flow_scheduler` is the counterpart for rectified flow: the stochastic Euler scheduler is the same sampler, and a
  shift moves its second step to any level.
- `bake_timesteps` edits the first layer of the time embedding so that the network computes at those timesteps what the
  student computes at its angles. It is a minimum-norm edit: there are few equations and many weights.
- `ignore_guidance` keeps classifier-free guidance off in stock UNet pipelines: the student's weights contain it.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LCMScheduler, UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from teachers.core.denoiser import SOFT_WIDTH, Denoiser
from teachers.core.trigflow import Flow, NoisePath, VariancePreserving
from teachers.networks.adapters import active_network, merged_copy


def lcm_timesteps(path: NoisePath, num_steps: int) -> list[int]:
    """The decreasing timesteps of `LCMScheduler` for `num_steps` steps with `original_inference_steps=num_steps`."""
    stride = path.num_train_timesteps // num_steps
    return [stride * i - 1 for i in range(num_steps, 0, -1)]


def check_times(path: NoisePath, times: Sequence[float]) -> None:
    """Check a student's sampling times.

    Raises:
        ValueError: If `times` is empty, does not decrease, or leaves [t_min, t_max] of the path.
    """
    if not times or any(b >= a for a, b in pairwise(times)):
        raise ValueError(f"a student's times must be decreasing angles, at least one, got {list(times)}")
    if times[0] > path.t_max + 1e-6 or times[-1] < path.t_min - 1e-6:
        raise ValueError(
            f"a student's times must be in [{path.t_min:.4f}, {path.t_max:.4f}] radians, got {list(times)}"
        )


def consistency_scheduler(denoiser: Denoiser, times: Sequence[float]) -> LCMScheduler:
    """A scheduler that samples a student at given angles in len(times) steps.

    Its table is passed as `trained_betas`, because creating a scheduler from another one's config can change defaults.

    Args:
        denoiser: The student, on a variance-preserving path.
        times: Decreasing angles in radians.

    Returns:
        The scheduler. Its timesteps are `lcm_timesteps`.

    Raises:
        ValueError: If the path is not variance preserving, or the times are invalid for it.
    """
    path = denoiser.path
    if not isinstance(path, VariancePreserving):
        raise ValueError(f"LCMScheduler needs a variance-preserving path, got {type(path).__name__}")
    output_angles = denoiser.output_angle(torch.tensor(times, dtype=torch.float64)).tolist()
    check_times(path, output_angles)
    if not np.allclose(output_angles[1:], times[1:], rtol=0, atol=1e-9):
        raise ValueError(
            f"times after the first must be at most {denoiser.max_angle} - {SOFT_WIDTH} radians for a student with "
            f"that max_angle, got {list(times)}"
        )
    anchors = [0, *reversed(lcm_timesteps(path, len(times)))]
    angles = torch.tensor([path.t_min, *reversed(output_angles)], dtype=torch.float64)
    levels = path.log_ratio
    if not np.allclose(path.timestep(angles)[1:].numpy(), anchors[1:], atol=1e-6):
        knots = np.log(np.tan(angles.numpy())) + math.log(path.sigma_data)
        levels = torch.from_numpy(np.interp(np.arange(path.num_train_timesteps), anchors, knots))
    alphas = torch.sigmoid(-2 * levels)
    betas = 1 - torch.cat([alphas[:1], alphas[1:] / alphas[:-1]])
    return LCMScheduler(
        num_train_timesteps=path.num_train_timesteps,
        trained_betas=betas.tolist(),
        original_inference_steps=len(times),
        prediction_type=denoiser.prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_scaling=1e6,  # c_skip = 0, c_out = 1: the student's x0 is its consistency function
    )


def native_levels(path: NoisePath, times: Sequence[float]) -> list[float]:
    """The native sigma of a rectified flow (alpha + sigma = 1) at the angles `times`."""
    levels: list[float] = path.native(torch.tensor(times, dtype=torch.float64))[1].tolist()
    return levels


def is_default_schedule(denoiser: Denoiser, times: Sequence[float]) -> bool:
    """Whether `flow_scheduler` reaches `times` from their number alone: one or two steps from pure noise."""
    return len(times) <= 2 and abs(times[0] - denoiser.path.t_max) < 1e-6


def flow_scheduler(
    denoiser: Denoiser, times: Sequence[float], passes_sigmas: bool = False
) -> tuple[FlowMatchEulerDiscreteScheduler, Tensor]:
    """A scheduler for rectified flow that samples a student at given angles.

    Stock pipelines request evenly spaced sigmas: either they pass 1, ..., 1/N themselves (`passes_sigmas`), or the
    scheduler uses 1 to its own smallest level, which its shift has already changed once. One more shift moves the
    second of two sigmas to any level, so one or two steps need no further argument. Other times need
    `sigmas=native_levels(...)` in the pipeline's call.

    Args:
        denoiser: The student, on a rectified-flow path.
        times: Decreasing angles in radians.
        passes_sigmas: Whether the pipeline passes linspace(1, 1/N, N) to the scheduler, as Flux does.

    Returns:
        The scheduler, and the timesteps (len(times),) that the network receives from the pipeline.

    Raises:
        ValueError: If the path is not a rectified flow, or the times are invalid for it.
    """
    path = denoiser.path
    if not isinstance(path, Flow):
        raise ValueError(f"FlowMatchEulerDiscreteScheduler needs a rectified-flow path, got {type(path).__name__}")
    check_times(path, times)
    levels, shift = native_levels(path, times), 1.0
    if is_default_schedule(denoiser, times) and len(times) == 2:
        odds = levels[1] / (1 - levels[1])  # a shift multiplies the odds s / (1 - s)
        shift = odds if passes_sigmas else math.sqrt(odds * (path.num_train_timesteps - 1))
    scheduler = FlowMatchEulerDiscreteScheduler(path.num_train_timesteps, shift=shift, stochastic_sampling=True)
    if not is_default_schedule(denoiser, times):
        scheduler.set_timesteps(sigmas=levels)
    elif passes_sigmas:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / len(times), len(times)).tolist())
    else:
        scheduler.set_timesteps(len(times))
    assert np.allclose(scheduler.sigmas[:-1].numpy(), levels, rtol=0, atol=1e-5)
    return scheduler, scheduler.timesteps


def time_embeddings(network: nn.Module) -> list[tuple[nn.Module, TimestepEmbedding]]:
    """The time embeddings of a diffusers network: one in most networks, one for each block in DiT.

    Args:
        network: A diffusers network.

    Returns:
        Pairs of the sinusoidal features and the layers that follow them.

    Raises:
        ValueError: If the network has no time embedding of diffusers.
    """
    found: list[tuple[nn.Module, TimestepEmbedding]] = []
    for module in network.modules():
        parts = dict(module.named_children())
        embedding = parts.get("time_embedding", parts.get("timestep_embedder"))
        if "time_proj" in parts and isinstance(embedding, TimestepEmbedding):
            found.append((parts["time_proj"], embedding))
    if not found:
        raise ValueError(
            f"{type(network).__name__} has no time embedding that can be refitted; "
            "train it on its native timesteps (sCM: method.adaptation_steps=0)"
        )
    return found


@torch.no_grad()
def bake_timesteps(denoiser: Denoiser, times: Sequence[float], timesteps: Tensor | None = None) -> nn.Module:
    """Copy the student's network so that it computes at a scheduler's timesteps what the student computes at `times`.

    With e the sinusoidal features, W' e(timesteps) = W e(timestep_input(times)) for the smallest change of W, the first
    linear layer of the time embedding.

    Args:
        denoiser: The student.
        times: Angles in radians, N of them.
        timesteps: The scheduler's timesteps, (N,); by default those of `LCMScheduler`.

    Returns:
        An ordinary diffusers network that shares no weights with the student's.
    """
    network = merged_copy(denoiser.network)
    device = next(network.parameters()).device
    trained = denoiser.timestep_input(torch.tensor(times, dtype=torch.float64, device=device))
    timesteps = torch.tensor(lcm_timesteps(denoiser.path, len(times))) if timesteps is None else timesteps
    timesteps = timesteps.to(device, torch.float32)
    if torch.allclose(trained, timesteps, rtol=0, atol=1e-4):
        return network
    for project, embedding in time_embeddings(network):
        target, features = (project(steps).double() for steps in (trained, timesteps))  # (N, features)
        layer, guidance_layer = embedding.linear_1, embedding.cond_proj
        weight = layer.weight.double()
        change, inputs = weight @ (target - features).T, features.T  # (hidden, N) at (features, N)
        if guidance_layer is not None:  # no change along the inputs that an embedded guidance scale adds
            change = torch.cat([change, change.new_zeros(len(change), guidance_layer.in_features)], dim=1)
            inputs = torch.cat([inputs, guidance_layer.weight.double()], dim=1)
        layer.weight.copy_(weight + change @ torch.linalg.pinv(inputs))
    return network


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
    return torch.cat([phase.sin(), phase.cos()], dim=1)


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


def initial_x_t(denoiser: Denoiser, noise: Tensor, t: float) -> Tensor:
    """Canonical x_t of a pipeline that starts from standard normal native noise.

    Args:
        denoiser: The student or teacher.
        noise: Standard normal noise, (B, ...).
        t: The first angle in radians.

    Returns:
        noise / scale(t), shape of `noise`.
    """
    return noise / _scale(denoiser.path, t)


@lru_cache(maxsize=64)
def _scale(path: NoisePath, t: float) -> float:
    return path.scale(torch.tensor([t], dtype=torch.float64)).item()


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
        for project, embedding in time_embeddings(network):
            _refit(project, embedding.linear_1, timesteps, rescaled, ridge)


def _refit(project: nn.Module, layer: nn.Linear, timesteps: Tensor, rescaled: Tensor, ridge: float) -> None:
    """Change `layer` so that its outputs at `rescaled` (N,) approximate its former outputs at `timesteps` (N,)."""
    native, features = (project(steps.to(layer.weight.device)).double() for steps in (timesteps, rescaled))
    ones = native.new_ones(len(native), 1)
    affine = torch.cat([layer.weight, layer.bias[:, None]], dim=1).double()
    target = torch.cat([native, ones], dim=1) @ affine.T
    inputs = torch.cat([features, ones], dim=1)
    gram = inputs.T @ inputs + ridge * torch.eye(inputs.shape[1]).to(inputs)
    solution = torch.linalg.solve(gram, inputs.T @ target).T
    layer.weight.copy_(solution[:, :-1])
    layer.bias.copy_(solution[:, -1])
