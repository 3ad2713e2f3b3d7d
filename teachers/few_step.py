"""Making a stock diffusers pipeline run a one- or few-step student: its noise levels, its clock, its guidance.

diffusers' `LCMScheduler` is multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1): denoise,
re-noise to the next level. Its N-step grid is fixed to the timesteps (i + 1) T / N - 1. A student runs at angles of its
own, so the export moves the noise table and the clock instead of asking the user for timesteps:

- `consistency_scheduler` bends the table of noise levels so that the grid's timesteps carry the student's angles;
- `pin_clock` edits the first layer of the time embedding so that the network, told those timesteps, computes exactly
  what the student computes (a minimum-norm edit: few equations, many weights);
- `ignore_guidance` makes stock pipelines leave classifier-free guidance off, since it is already in the weights.
"""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from diffusers import LCMScheduler, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from teachers.denoiser import Denoiser
from teachers.trigflow import NoisePath, VariancePreserving


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
    read = denoiser.reading(torch.tensor(times, dtype=torch.float64)).tolist()
    check_times(path, read)
    if not np.allclose(read[1:], times[1:], rtol=0, atol=1e-9):
        raise ValueError(
            f"a student with a ceiling of {denoiser.ceiling} rad can only take later steps well below it; "
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


@torch.no_grad()
def pin_clock(denoiser: Denoiser, times: Sequence[float]) -> UNet2DConditionModel | UNet2DModel:
    """A copy of the student's network that, told the scheduler's grid, computes what the student computes at `times`.

    W' e(grid) = W e(clock(times)) with the smallest change of W, the time embedding's first linear layer.
    """
    network: UNet2DConditionModel | UNet2DModel = copy.deepcopy(denoiser.network)
    device = next(network.parameters()).device
    asked = denoiser.clock(torch.tensor(times, dtype=torch.float64, device=device))
    told = torch.tensor(grid(denoiser.path, len(times)), dtype=torch.float32, device=device)
    if torch.allclose(asked, told, rtol=0, atol=1e-4):
        return network
    wanted, given = (network.time_proj(steps).double() for steps in (asked, told))  # (N, features)
    layer, embedded = network.time_embedding.linear_1, network.time_embedding.cond_proj
    weight = layer.weight.double()
    change, at = weight @ (wanted - given).T, given.T  # (hidden, N) wanted of the edit at these inputs (features, N)
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

    It is narrower than the time embedding's input, so that `pin_clock` can leave it alone.
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
    return noise / denoiser.path.scale(torch.tensor([t], dtype=torch.float64)).item()


@torch.no_grad()
def soften_clock(denoiser: Denoiser, time_scale: float, ridge: float = 1e-3) -> None:
    """Put `denoiser` on the gentle clock `time_scale * t`, its time embedding refitted by ridge regression.

    The embedding's first layer is solved so that, over the whole range of angles, the gentle clock gives the closest
    thing to what the native clock gave. What it cannot follow (the native clock's fast features) training has to make
    up for.
    """
    network: UNet2DConditionModel | UNet2DModel = denoiser.network
    path = denoiser.path
    device = next(network.parameters()).device
    angles = torch.linspace(path.t_min, path.t_max, 1000, dtype=torch.float64, device=device)
    native = network.time_proj(denoiser.clock(angles)).double()
    denoiser.time_scale = time_scale
    gentle = network.time_proj(denoiser.clock(angles)).double()
    layer = network.time_embedding.linear_1
    ones = torch.ones(len(angles), 1, dtype=torch.float64, device=device)
    wanted = torch.cat([native, ones], dim=1) @ torch.cat([layer.weight, layer.bias[:, None]], dim=1).double().T
    given = torch.cat([gentle, ones], dim=1)
    gram = given.T @ given + ridge * torch.eye(given.shape[1], dtype=torch.float64, device=device)
    solution = torch.linalg.solve(gram, given.T @ wanted).T
    layer.weight.copy_(solution[:, :-1])
    layer.bias.copy_(solution[:, -1])
