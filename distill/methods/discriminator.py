"""A discriminator on the features of a diffusion network: the GAN loss of DMD2 (arXiv 2405.14867, section 4.3).

A small head reads the features of a UNet's or transformer's middle block at a noisy sample (a "diffusion GAN": real and
generated samples are noised before classification). The network is the fake score, which the head's loss then trains
too, or the frozen teacher.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from distill.methods.compiling import eager
from teachers.core.denoiser import Condition, Denoiser
from teachers.networks.adapters import unwrap
from teachers.networks.storage import without_autocast

# Names of the children that hold the middle block: UNets; most transformers; AuraFlow; Wan; Z-Image and Lumina 2, and
# the analytic perceptron; HiDream; Kandinsky 5.
MIDDLE_BLOCKS = (
    *("mid_block", "transformer_blocks", "joint_transformer_blocks", "blocks", "layers"),
    *("double_stream_blocks", "visual_transformer_blocks"),
)
UNET_BLOCKS = ("down_blocks", "mid_block", "up_blocks")  # their outputs have channels before positions

NoisySample = tuple[Tensor, Tensor, Condition]  # x_t (B, ...), t (B,), cond


class Discriminator(nn.Module):
    """Classifies noisy samples as real or generated: a perceptron on each feature token, averaged over tokens.

    Args:
        denoiser: The network whose middle features are read.
        example: One sample x_t (1, ...), its angle t (1,) and its condition; determines the number of channels.
        layer: Name of the submodule whose output is read; None: `middle_block`.
        width: Hidden width of the perceptron.
        stream: Which of several outputs of the submodule belongs to the sample (`Teacher.stream`).
    """

    def __init__(
        self, denoiser: Denoiser, example: NoisySample, layer: str | None = None, width: int = 128, stream: int = -1
    ) -> None:
        super().__init__()
        self.layer, self.stream = layer, stream
        with torch.no_grad():
            channels = features(denoiser, *example, layer, stream).shape[-1]
        self.head = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, 1)
        ).to(example[0].device)

    def forward(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Logits (B,) that the samples are real.

        Args:
            denoiser: The network whose features are read.
            x_t: Noisy samples (B, ...) of unit variance.
            t: Angles (B,) in radians.
            cond: Conditions with B rows.
        """
        hidden = features(denoiser, x_t, t, cond, self.layer, self.stream)
        with without_autocast(hidden.device):  # half-precision logits are too coarse to train on
            logits: Tensor = self.head(hidden)
        return logits.flatten(1).mean(1)


def features(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Condition, layer: str | None = None, stream: int = -1
) -> Tensor:
    """Features of the network's middle block, or of `layer`, at x_t (B, ...) and angles t (B,).

    The rest of the network is not evaluated, except for a sharded one, whose forward pass must be complete.

    Returns:
        Tokens (B, N, C), float32.
    """
    outputs: list[Tensor] = []
    network = unwrap(denoiser.network)
    block, rows, channels_first = middle_block(network, layer), len(x_t), has_channels_first(network, layer)
    complete = isinstance(denoiser.network, FSDPModule)

    def read(module: nn.Module, args: object, output: Any) -> None:
        outputs.append(of_sample(output, stream))
        if not complete and sum(map(len, outputs)) >= rows:  # some families call the network once for each sample
            raise _LayerReached

    hook = block.register_forward_hook(read)
    try:
        with eager(), suppress(_LayerReached):  # a compiled network does not call the hook
            denoiser.velocity(x_t, t, cond)
    finally:
        hook.remove()
    found = outputs[0] if len(outputs[0]) >= rows else torch.cat(outputs)
    if denoiser.sample_tokens is not None:
        found = denoiser.sample_tokens(found, x_t, cond)
    return tokens(found, rows, stream, channels_first)


class _LayerReached(BaseException):
    """Ends a forward pass at the layer that is read; not an Exception, which libraries catch."""


def has_channels_first(network: nn.Module, layer: str | None = None) -> bool:
    """Whether three-dimensional outputs of `middle_block` are maps (B, C, L) of a UNet, not tokens (B, N, C)."""
    children = dict(network.named_children())
    block = layer.partition(".")[0] if layer else next((name for name in MIDDLE_BLOCKS if name in children), "")
    return block in UNET_BLOCKS


def middle_block(network: nn.Module, layer: str | None = None) -> nn.Module:
    """The block halfway through `network`.

    Args:
        network: The network.
        layer: The name of a submodule to take instead (`Teacher.feature_layer`).

    Raises:
        ValueError: If the architecture is not supported, or there is no submodule `layer`.
    """
    if layer is not None:
        found: nn.Module | None = dict(network.named_modules()).get(layer)
        if found is None:
            raise ValueError(
                f"the family's feature_layer must be a submodule of {type(network).__name__}, got {layer!r}"
            )
        return found
    children = dict(network.named_children())
    for name in MIDDLE_BLOCKS:
        block = children.get(name)
        if isinstance(block, nn.ModuleList):
            return block[len(block) // 2]
        if block is not None:
            return block
    raise ValueError(
        f"method.gan_weight must be 0 for this teacher: {type(network).__name__} has no child named "
        f"{', '.join(MIDDLE_BLOCKS)} whose features a discriminator could read; its family can name one (feature_layer)"
    )


def of_sample(output: Any, stream: int) -> Tensor:
    """The output of a block that belongs to the sample, by its index if there are several."""
    value: Tensor = output if isinstance(output, Tensor) else output[stream]
    return value


def tokens(output: Any, rows: int | None = None, stream: int = -1, channels_first: bool = False) -> Tensor:
    """A block's output as float32 tokens (B, N, C).

    Accepts maps (B, C, ...), a transformer's (B, N, C) and vectors (B, C), or a tuple of which one element belongs to
    the sample. Blocks of networks that fold time into the batch return (B F, ...); the tokens of all frames of a sample
    are joined.

    Args:
        output: The output.
        rows: B; None: that of the output.
        stream: The index of the element of a tuple.
        channels_first: Whether three dimensions are (B, C, L), not (B, N, C).

    Raises:
        ValueError: If the batch of the output is not a multiple of B.
    """
    value = of_sample(output, stream)
    rows = len(value) if rows is None else rows
    if len(value) % rows:
        raise ValueError(
            f"the features of a batch of {rows} samples must have a multiple of {rows} rows, got {tuple(value.shape)}"
        )
    if value.ndim > 3 or (value.ndim == 3 and channels_first):
        value = value.flatten(2).mT
    return value.reshape(rows, -1, value.shape[-1]).float()


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """A context in which parameters of `modules` get no gradient; gradients still flow through them to their inputs."""
    trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def approximate_r1(
    discriminator: Discriminator, denoiser: Denoiser, logits: Tensor, real: NoisySample, noise: Tensor
) -> Tensor:
    """The R1 penalty E|dD/dx|^2 on real samples, approximated by E|D(x + sigma n) - D(x)|^2 / sigma^2.

    For small sigma and n ~ N(0, I) the expectation of the approximation is R1 itself (Mescheder et al. 2018, arXiv
    1801.04406). It needs no second derivative, which fused attention does not have. The perturbed logits are computed
    without autocast; sigma is 0.01 for a float32 network and 0.1 for a half-precision one, whose rounding hides smaller
    steps.

    Source: Lin et al. 2025, arXiv 2501.08316, section 3.4.

    Args:
        discriminator: D.
        denoiser: The network whose features D reads.
        logits: D at the real samples (B,), computed without autocast.
        real: Noisy real samples: x_t (B, ...), angles t (B,) and conditions.
        noise: n, standard normal, the shape of x_t.

    Returns:
        The penalty, a scalar.
    """
    x_t, t, cond = real
    sigma = 0.01 if next(denoiser.parameters(), x_t).dtype == torch.float32 else 0.1
    with without_autocast(x_t.device):
        perturbed = discriminator(denoiser, x_t + sigma * noise, t, cond)
    penalty: Tensor = ((perturbed - logits) / sigma).square().mean()
    return penalty
