"""Telling real from fake by the features of a diffusion network: the GAN half of DMD2 (arXiv 2405.14867, section 4.3).

A small head reads what the middle of a UNet or transformer makes of a noisy sample (a "diffusion GAN": both sides are
noised before they are judged). The network is the fake score, which the head's loss then trains too, or the teacher.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distill.methods.compiling import eager
from teachers.core.denoiser import Condition, Denoiser
from teachers.networks.adapters import unwrap
from teachers.networks.storage import without_autocast

MIDDLES = ("mid_block", "transformer_blocks", "layers")  # UNets; DiT, PixArt, SD3, Flux, Sana; the analytic perceptron


class Discriminator(nn.Module):
    """Logits (B,) that a sample is real: a perceptron on each token of the middle's features, averaged.

    `example` is one sample (1, ...), its angle and condition, from which the number of features is read.
    """

    def __init__(self, denoiser: Denoiser, example: tuple[Tensor, Tensor, Condition], width: int = 128) -> None:
        super().__init__()
        with torch.no_grad():
            channels = features(denoiser, *example).shape[-1]
        self.head = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, 1)
        ).to(example[0].device)

    def forward(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        found = features(denoiser, x_t, t, cond)
        with without_autocast(found.device):  # logits of half precision would be steps, not a slope
            logits: Tensor = self.head(found)
        return logits.flatten(1).mean(1)


def features(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """What the middle of the network makes of x_t (B, ...) at angles t (B,): tokens (B, N, C), float32."""
    found: list[Tensor] = []
    network = middle(unwrap(denoiser.network))
    hook = network.register_forward_hook(lambda module, args, output: found.append(tokens(output)))
    try:
        with eager():  # a compiled network would not call the hook
            denoiser.velocity(x_t, t, cond)
    finally:
        hook.remove()
    return found[0]


def middle(network: nn.Module) -> nn.Module:
    """The block halfway through `network`; ValueError for an architecture that this does not know."""
    children = dict(network.named_children())
    for name in MIDDLES:
        block = children.get(name)
        if isinstance(block, nn.ModuleList):
            return block[len(block) // 2]
        if block is not None:
            return block
    raise ValueError(
        f"a GAN reads the middle of the network, and {type(network).__name__} has none of {', '.join(MIDDLES)}; "
        "set method.gan_weight to 0"
    )


def tokens(output: Any) -> Tensor:
    """A UNet's (B, C, H, W), a transformer's (B, N, C), or the image stream, the last of several outputs, as tokens."""
    found: Tensor = output if isinstance(output, Tensor) else output[-1]
    if found.ndim == 4:
        return found.flatten(2).mT.float()
    return (found if found.ndim == 3 else found[:, None]).float()


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Record no gradient for the parameters of `modules`; gradients still flow through them to their inputs."""
    trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def approximate_r1(
    discriminator: Discriminator,
    denoiser: Denoiser,
    real: tuple[Tensor, Tensor, Condition],
    noise: Tensor,
) -> Tensor:
    """R1, E|dD/dx|^2 at `real` samples (x_t, t, cond), as E|D(x + sigma n) - D(x)|^2 / sigma^2; a scalar.

    Lin et al. 2025 (arXiv 2501.08316, section 3.4): for small sigma and n ~ N(0, I) its mean is R1 itself (Mescheder et
    al. 2018), without the second derivative that fused attention does not have. Both logits are made without autocast,
    and sigma is 0.01 for a float32 network and 0.1 for one in half precision, which would not see less.
    """
    x_t, t, cond = real
    sigma = 0.01 if next(denoiser.parameters(), x_t).dtype == torch.float32 else 0.1
    with without_autocast(x_t.device):
        here, there = (discriminator(denoiser, x, t, cond) for x in (x_t, x_t + sigma * noise))
    return ((there - here) / sigma).square().mean()
