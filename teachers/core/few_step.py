"""Making a stock diffusers pipeline run a one- or few-step student: its noise levels, its clock, its guidance.

diffusers' `LCMScheduler` is multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1): denoise,
re-noise to the next level. Its N-step grid is fixed to the timesteps (i + 1) T / N - 1. A student runs at angles of its
own, so the export moves the noise table and the clock instead of asking the user for timesteps:

- `consistency_scheduler` bends the table of noise levels so that the grid's timesteps carry the student's angles;
- `flow_scheduler` is its counterpart for rectified flow: the stochastic Euler scheduler is the same sampler, and a
  shift puts its second step anywhere;
- `bake_timesteps` edits the first layer of the time embedding so that the network, told those timesteps, computes exactly
  what the student computes (a minimum-norm edit: few equations, many weights);
- `ignore_guidance` makes stock UNet pipelines leave classifier-free guidance off, since it is in the weights already.
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

from teachers.core.denoiser import Denoiser
from teachers.core.trigflow import Flow, NoisePath, VariancePreserving
from teachers.networks.adapters import active_network, merged_copy


def grid(path: NoisePath, num_steps: int) -> list[int]:
    """The timesteps, falling, at which `LCMScheduler` runs `num_steps` out of `num_steps` original steps."""
    stride = path.num_train_timesteps // num_steps
    return [stride * i - 1 for i in range(num_steps, 0, -1)]


def check_times(path: NoisePath, times: Sequence[float]) -> None:
    """ValueError unless `times` fall and lie on the path."""
    if not times or any(b >= a for a, b in pairwise(times)):
        raise ValueError(f"a student's times have to fall, and there has to be one at least; these are {list(times)}")
    if times[0] > path.t_max + 1e-6 or times[-1] < path.t_min - 1e-6:
        raise ValueError(
            f"a student's times have to lie in [{path.t_min:.4f}, {path.t_max:.4f}] rad; these are {list(times)}"
        )


def consistency_scheduler(denoiser: Denoiser, times: Sequence[float]) -> LCMScheduler:
    """An `LCMScheduler` that samples at exactly the falling angles `times` (radians) when asked for len(times) steps.

    Its table is `trained_betas`, spelled out: rebuilding a scheduler from another's config can silently change a
    default.
    """
    path = denoiser.path
    if not isinstance(path, VariancePreserving):
        raise ValueError("LCMScheduler holds variance-preserving tables; this path needs an export of its own")
    read = denoiser.output_angle(torch.tensor(times, dtype=torch.float64)).tolist()
    check_times(path, read)
    if not np.allclose(read[1:], times[1:], rtol=0, atol=1e-9):
        raise ValueError(
            f"a student with a ceiling of {denoiser.max_angle} rad can only take later steps well below it; "
            f"these are {list(times)}"
        )
    anchors = [0, *reversed(grid(path, len(times)))]
    angles = torch.tensor([path.t_min, *reversed(read)], dtype=torch.float64)
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
        timestep_scaling=1e6,  # c_skip = 0, c_out = 1: the student's own output is its consistency function
    )


def native_levels(path: NoisePath, times: Sequence[float]) -> list[float]:
    """The flow's own s = sigma (alpha + sigma = 1) at angles `times`."""
    return path.native(torch.tensor(times, dtype=torch.float64))[1].tolist()


def default_grid(denoiser: Denoiser, times: Sequence[float]) -> bool:
    """Whether `flow_scheduler` runs `times` when told their number alone: one or two steps from pure noise."""
    return len(times) <= 2 and abs(times[0] - denoiser.path.t_max) < 1e-6


def flow_scheduler(
    denoiser: Denoiser, times: Sequence[float], whole_grid: bool = False
) -> tuple[FlowMatchEulerDiscreteScheduler, Tensor]:
    """A `FlowMatchEulerDiscreteScheduler` that denoises and re-noises at `times` (radians), and what it tells networks.

    Stock pipelines ask it for a straight grid of s: 1, 1/N with `whole_grid` (Flux), else 1 and the scheduler's own
    smallest level, already shifted once. One more shift carries the second of two to any level, so that one and two
    steps need no further argument. Other times need `sigmas` in the pipeline's call (`native_levels`).
    """
    path = denoiser.path
    if not isinstance(path, Flow):
        raise ValueError("FlowMatchEulerDiscreteScheduler holds rectified flows; this path needs an export of its own")
    check_times(path, times)
    levels, shift = native_levels(path, times), 1.0
    if default_grid(denoiser, times) and len(times) == 2:
        odds = levels[1] / (1 - levels[1])  # a shift multiplies the odds s / (1 - s)
        shift = odds if whole_grid else math.sqrt(odds * (path.num_train_timesteps - 1))
    scheduler = FlowMatchEulerDiscreteScheduler(path.num_train_timesteps, shift=shift, stochastic_sampling=True)
    if not default_grid(denoiser, times):
        scheduler.set_timesteps(sigmas=levels)
    elif whole_grid:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / len(times), len(times)).tolist())
    else:
        scheduler.set_timesteps(len(times))
    assert np.allclose(scheduler.sigmas[:-1].numpy(), levels, rtol=0, atol=1e-5)
    return scheduler, scheduler.timesteps


def time_embeddings(network: nn.Module) -> list[tuple[nn.Module, TimestepEmbedding]]:
    """Where a diffusers network meets its timestep: pairs of the sinusoidal features and the layers behind them.

    One for most networks, one a block for DiT. ValueError where there is none.
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
            "distil it on its native clock (sCM: method.adaptation_steps=0)"
        )
    return found


@torch.no_grad()
def bake_timesteps(denoiser: Denoiser, times: Sequence[float], told: Tensor | None = None) -> nn.Module:
    """A copy of the student's network that, told the scheduler's timesteps, computes what the student does at `times`.

    `told` (N,) are those timesteps, `LCMScheduler`'s grid by default. W' e(told) = W e(clock(times)) with the smallest
    change of W, the time embedding's first linear layer.
    """
    network = merged_copy(denoiser.network)
    device = next(network.parameters()).device
    asked = denoiser.timestep_input(torch.tensor(times, dtype=torch.float64, device=device))
    told = torch.tensor(grid(denoiser.path, len(times))) if told is None else told
    told = told.to(device, torch.float32)
    if torch.allclose(asked, told, rtol=0, atol=1e-4):
        return network
    for project, embedding in time_embeddings(network):
        wanted, given = (project(steps).double() for steps in (asked, told))  # (N, features)
        layer, embedded = embedding.linear_1, embedding.cond_proj
        weight = layer.weight.double()
        change, at = weight @ (wanted - given).T, given.T  # (hidden, N) wanted of the edit at these inputs
        if embedded is not None:  # and none of it at whatever an embedded guidance scale adds to them
            change = torch.cat([change, change.new_zeros(len(change), embedded.in_features)], dim=1)
            at = torch.cat([at, embedded.weight.double()], dim=1)
        layer.weight.copy_(weight + change @ torch.linalg.pinv(at))
    return network


def guidance_embedding(guidance: Tensor, width: int) -> Tensor:
    """What diffusers' pipelines feed a UNet with a guidance embedding for scales (B,): (B, width), float32.

    Sinusoids of 1000 (guidance - 1), since the embedding counts from no guidance at 0.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=guidance.device) * -(math.log(10000.0) / (half - 1)))
    phase = 1000.0 * (guidance.float() - 1)[:, None] * frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def guidance_width(network: UNet2DConditionModel) -> int:
    """Numbers by which a UNet is told its guidance scale: half of those by which it is told the time."""
    return network.time_embedding.linear_1.in_features // 4 * 2


@torch.no_grad()
def add_guidance_embedding(network: UNet2DConditionModel) -> None:
    """Give the UNet an input for the guidance scale that changes nothing yet: a linear layer of weight zero.

    It is narrower than the time embedding's input, so that `bake_timesteps` can leave it alone.
    """
    ignore_guidance(network, guidance_width(network))
    network.time_embedding.cond_proj.requires_grad_(True)


@torch.no_grad()
def ignore_guidance(network: UNet2DConditionModel, width: int = 4) -> None:
    """Give the UNet a guidance embedding of weight zero: pipelines then never switch classifier-free guidance on.

    Stock pipelines run guidance only `if guidance_scale > 1 and unet.config.time_cond_proj_dim is None`, and their
    default is 7.5, which a distilled student must not see.
    """
    features = network.time_embedding.linear_1.in_features
    projection = nn.Linear(width, features, bias=False).to(network.time_embedding.linear_1.weight)
    projection.weight.zero_()
    network.time_embedding.cond_proj = projection
    network.register_to_config(time_cond_proj_dim=width)


def start(denoiser: Denoiser, noise: Tensor, t: float) -> Tensor:
    """The canonical x_t of a pipeline that starts from unit-variance native noise: noise / scale."""
    return noise / _scale(denoiser.path, t)


@lru_cache(maxsize=64)
def _scale(path: NoisePath, t: float) -> float:
    return path.scale(torch.tensor([t], dtype=torch.float64)).item()


@torch.no_grad()
def refit_time_embedding(denoiser: Denoiser, time_scale: float, ridge: float = 1e-3) -> None:
    """Put `denoiser` on the gentle clock `time_scale * t`, its time embedding refitted by ridge regression.

    The embedding's first layer is solved so that, over the whole range of angles, the gentle clock gives the closest
    thing to what the native clock gave. What it cannot follow (the native clock's fast features) training has to make
    up for.
    """
    path = denoiser.path
    angles = torch.linspace(path.t_min, path.t_max, 1000, dtype=torch.float64)
    clock = denoiser.timestep_input(angles)
    denoiser.time_scale = time_scale
    gentle = denoiser.timestep_input(angles)
    with active_network(denoiser.network) as network:
        for project, embedding in time_embeddings(network):
            _refit(project, embedding.linear_1, clock, gentle, ridge)


def _refit(project: nn.Module, layer: nn.Linear, before: Tensor, after: Tensor, ridge: float) -> None:
    """Make `layer`, told the timesteps `after` (N,), give what it gave for `before`, by ridge regression."""
    before, after = (project(steps.to(layer.weight.device)).double() for steps in (before, after))
    ones = before.new_ones(len(before), 1)
    affine = torch.cat([layer.weight, layer.bias[:, None]], dim=1).double()
    wanted = torch.cat([before, ones], dim=1) @ affine.T
    given = torch.cat([after, ones], dim=1)
    gram = given.T @ given + ridge * torch.eye(given.shape[1]).to(given)
    solution = torch.linalg.solve(gram, given.T @ wanted).T
    layer.weight.copy_(solution[:, :-1])
    layer.bias.copy_(solution[:, -1])
