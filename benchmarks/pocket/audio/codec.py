"""The autoencoder of the pocket audio teacher: an `AutoencoderOobleck` whose latents have zero mean, unit variance."""

import math
from pathlib import Path
from types import MethodType

import torch
import torch.nn.functional as F
from diffusers import AutoencoderOobleck
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.pocket.audio.data import waveforms
from benchmarks.pocket.machine import CPU, Machine
from benchmarks.pocket.training import train
from teachers.pocket_audio.parts import LATENT_CHANNELS, make_autoencoder

CROP = 2048  # samples of a training crop
BATCH = 8
NOISE = 0.05  # deviation of the noise on standardised latents, in training and in the posterior of the finished codec
WINDOWS = (64, 256, 1024)  # of the spectral losses
FLOOR = 1e-3  # amplitude below which a log-spectrum does not distinguish: -60 dB


class FastSnake(torch.autograd.Function):
    """Snake activation x + sin(a x)^2 / b with a backward pass of its own, which keeps one tensor instead of five."""

    @staticmethod
    def forward(ctx, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, alpha, beta)
        sine = torch.sin(alpha * x)
        return torch.addcmul(x, sine.square_(), 1 / beta)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, alpha, beta = ctx.saved_tensors
        angle = (2 * alpha) * x
        slope = torch.sin(angle).mul_(gradient)  # of sin^2, times the gradient
        square = torch.cos(angle).sub_(1).mul_(-0.5)
        dalpha = (slope * x).sum((0, 2), keepdim=True) / beta
        dbeta = -(square.mul_(gradient)).sum((0, 2), keepdim=True) / beta.square()
        return torch.addcmul(gradient, slope, alpha / beta), dalpha, dbeta


def _fast_snake(self: nn.Module, x: Tensor) -> Tensor:
    return FastSnake.apply(x, self.alpha.exp(), self.beta.exp() + 1e-9)


def _use_fast_snake(model: nn.Module, fast: bool) -> None:
    for module in model.modules():
        if type(module).__name__ == "Snake1d":
            if fast:
                module.forward = MethodType(_fast_snake, module)
            else:
                module.__dict__.pop("forward", None)


def spectrum(audio: Tensor, window: int) -> Tensor:
    """Amplitudes (N, window / 2 + 1, frames) of waveforms (N, 1, samples)."""
    taper = torch.hann_window(window, device=audio.device)
    transformed = torch.stft(audio[:, 0], window, window // 4, window=taper, return_complex=True)
    return (torch.view_as_real(transformed).square().sum(-1) + 1e-12).sqrt() * (2 / taper.sum())


def spectral_loss(output: Tensor, target: Tensor) -> Tensor:
    """Relative L1 distance of amplitudes plus L1 distance of their logarithms, averaged over three resolutions."""
    loss = output.new_zeros(())
    for window in WINDOWS:
        a, b = spectrum(output, window), spectrum(target, window)
        loss = loss + (a - b).abs().mean() / b.mean() + 0.3 * F.l1_loss((a + FLOOR).log(), (b + FLOOR).log())
    return loss / len(WINDOWS)


def _weight(layer: nn.Module) -> Tensor:
    """The weight of a layer with weight normalisation; `layer.weight` is that of its last call."""
    return torch._weight_norm(layer.weight_v, layer.weight_g, 0).detach().clone()


def _set(layer: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
    """Set the weight of a layer with weight normalisation."""
    layer.weight_v.copy_(weight)
    layer.weight_g.copy_(weight.flatten(1).norm(dim=1)[:, None, None])
    if layer.bias is not None:
        layer.bias.copy_(layer.bias * 0 if bias is None else bias)


@torch.no_grad()
def start_from_principal_components(vae: AutoencoderOobleck, audio: Tensor) -> None:
    """Initialise the autoencoder as the principal components of blocks of `hop_length` samples.

    The strided convolutions rearrange a block's samples into channels and back, the layers at the latent multiply by
    the components, and the residual units are almost identities. A random Oobleck network needs hours to learn as much.
    """
    hop = vae.hop_length
    blocks = waveforms(audio).reshape(-1, hop)
    variance, components = torch.linalg.eigh((blocks.T @ blocks / len(blocks)).double())
    components = components.flip(1)[:, :LATENT_CHANNELS].float()  # (hop, channels)
    deviation = variance.flip(0)[:LATENT_CHANNELS].clamp(min=1e-6 * variance[-1]).sqrt().float()
    for module in vae.modules():
        if type(module).__name__ == "OobleckResidualUnit":
            module.conv2.weight_g *= 0.1
            module.conv2.bias.zero_()
    for module in (*vae.encoder.block, vae.encoder, *vae.decoder.block, vae.decoder):
        module.snake1.alpha.fill_(-2.0)  # close to linear

    def small(layer: nn.Module) -> Tensor:
        return 0.1 * layer.weight_v / layer.weight_v.flatten(1).norm(dim=1)[:, None, None]

    first = small(vae.encoder.conv1)
    first[0] = F.one_hot(torch.tensor([3]), 7)
    _set(vae.encoder.conv1, first)
    samples = 1  # of a block that are in the channels so far
    for block in vae.encoder.block:
        weight, stride = small(block.conv1), block.conv1.stride[0]
        weight[: samples * stride] = 0
        for j in range(stride):
            for c in range(samples):
                weight[j * samples + c, c, block.conv1.padding[0] + j] = 1
        _set(block.conv1, weight)
        samples *= stride
    last = small(vae.encoder.conv2)
    last[:LATENT_CHANNELS] *= 0.1
    last[:LATENT_CHANNELS, :hop, 1] = (components / deviation).T
    _set(vae.encoder.conv2, last)

    weight = small(vae.decoder.conv1)
    weight[:hop] = 0
    weight[:hop, :, 3] = components * deviation
    _set(vae.decoder.conv1, weight)
    for block in vae.decoder.block:
        stride = block.conv_t1.stride[0]
        weight = small(block.conv_t1)
        weight[:samples] = 0
        samples //= stride
        for j in range(stride):
            for c in range(samples):
                weight[j * samples + c, c, block.conv_t1.padding[0] + j] = 1
        _set(block.conv_t1, weight)
    weight = small(vae.decoder.conv2) * 0.1
    weight[0, 0] = F.one_hot(torch.tensor(3), 7)
    _set(vae.decoder.conv2, weight)


class Codec(nn.Module):
    """The autoencoder in training: latents are standardised by running statistics that `finish` merges into it."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = make_autoencoder()
        self.norm = nn.BatchNorm1d(LATENT_CHANNELS, affine=False, momentum=0.02)

    def forward(self, audio: Tensor, noise: Tensor) -> Tensor:
        """Reconstructions (N, 1, samples) from noisy latents; `noise` is (N, channels, samples / hop)."""
        latents = self.vae.encoder(audio)[:, :LATENT_CHANNELS]
        if self.training:
            with torch.no_grad():
                self.norm.train()(latents)  # updates the running statistics
        # a batch's own statistics would hide the loudness of its sounds from the decoder
        return self.vae.decoder(self.norm.eval()(latents) + NOISE * noise)

    @torch.no_grad()
    def finish(self, audio: Tensor) -> AutoencoderOobleck:
        """The autoencoder with the statistics merged into the layers at the latent, and a posterior of width NOISE.

        The running statistics are those of crops. A last factor, by the latents of whole notes, is exact because it
        goes into the encoder and out of the decoder.
        """
        scale = (self.norm.running_var + self.norm.eps).rsqrt()
        mean = self.norm.running_mean
        _use_fast_snake(self.vae, False)
        self._standardise(scale, mean)
        deviation = encode(self.vae, audio).std(dim=(0, 2))
        self._standardise(1 / deviation, torch.zeros_like(mean))
        first = self.vae.decoder.conv1
        _set(first, _weight(first) * deviation[:, None], first.bias)
        return self.vae

    def _standardise(self, scale: Tensor, mean: Tensor) -> None:
        last = self.vae.encoder.conv2
        weight, bias = _weight(last), last.bias.clone()
        weight[:LATENT_CHANNELS] *= scale[:, None, None]
        bias[:LATENT_CHANNELS] = (bias[:LATENT_CHANNELS] - mean) * scale
        weight[LATENT_CHANNELS:] *= 1e-6  # weight normalisation cannot hold a row of zeros
        bias[LATENT_CHANNELS:] = math.log(math.expm1(NOISE))
        _set(last, weight, bias)


def _crops(audio: Tensor, rng: torch.Generator) -> Tensor:
    """Random crops (BATCH, 1, CROP) of 16-bit audio with random loudness and sign."""
    draw = {"generator": rng, "device": audio.device}
    rows = torch.randint(len(audio), (BATCH, 1), **draw)
    starts = torch.randint(audio.shape[1] - CROP + 1, (BATCH, 1), **draw)
    crops = audio[rows, starts + torch.arange(CROP, device=audio.device)]
    gain = 0.4 + 0.6 * torch.rand(BATCH, 1, 1, **draw)
    sign = 1 - 2 * torch.randint(2, (BATCH, 1, 1), **draw)
    return waveforms(crops) * gain * sign


def _reconstruction_loss(output: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The spectral loss plus the relative root mean square error of each waveform."""
    spectral = spectral_loss(output, target)
    energy = target.square().mean(dim=(1, 2))
    wave = ((output - target).square().mean(dim=(1, 2)) / (energy + 1e-4)).sqrt().mean()
    return spectral + wave, {"spectral": spectral, "wave": wave}


def train_codec(audio: Tensor, steps: int, work: Path, machine: Machine = CPU) -> AutoencoderOobleck:
    """Train the autoencoder on random crops of 16-bit audio (N, samples)."""
    torch.manual_seed(0)
    codec = Codec().train()
    start_from_principal_components(codec.vae, audio[:: max(1, len(audio) // 2000)])
    _use_fast_snake(codec.vae, True)
    with torch.no_grad():  # weight normalisation leaves a non-leaf tensor behind that cannot be copied
        codec.vae(torch.zeros(1, 1, CROP))
    hop, notes = codec.vae.hop_length, audio.to(machine.device)

    def loss(rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        target = _crops(notes, rng)
        noise = torch.randn(BATCH, LATENT_CHANNELS, CROP // hop, generator=rng, device=machine.device)
        output = codec(target, noise)
        return _reconstruction_loss(output, target)

    state, betas = work / "codec.pt", (0.8, 0.99)
    trained = train("codec", codec, loss, steps, 1e-3, state, ema=0.998, betas=betas, machine=machine).cpu()
    return trained.finish(audio[:480]).eval().requires_grad_(False)


def train_decoder(
    vae: AutoencoderOobleck, audio: Tensor, steps: int, work: Path, machine: Machine = CPU
) -> AutoencoderOobleck:
    """Train the decoder further on the finished encoder's latents, while the transformer may train on them too."""
    _use_fast_snake(vae, True)
    with torch.no_grad():
        vae(torch.zeros(1, 1, CROP))
    vae.encoder.requires_grad_(False)
    vae.decoder.requires_grad_(True)

    audio = audio.to(machine.device)

    def loss(rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        target = _crops(audio, rng)
        with torch.no_grad():
            latents = vae.encode(target).latent_dist.mean
            latents = latents + NOISE * torch.randn(latents.shape, generator=rng, device=machine.device)
        return _reconstruction_loss(vae.decoder(latents), target)

    state, betas = work / "decoder.pt", (0.8, 0.99)
    trained = train("decoder", vae, loss, steps, 1e-3, state, ema=0.998, betas=betas, seed=10**6, machine=machine)
    _use_fast_snake(trained, False)
    return trained


@torch.no_grad()
def encode(vae: AutoencoderOobleck, audio: Tensor, machine: Machine = CPU) -> Tensor:
    """Mean latents (N, channels, length) of 16-bit audio (N, samples)."""
    _use_fast_snake(vae.to(machine.device), True)  # type: ignore[arg-type]
    batches = tqdm(audio.split(100), desc="latents", mininterval=20)
    latents = torch.cat([vae.encode(waveforms(batch.to(machine.device))).latent_dist.mean for batch in batches])
    _use_fast_snake(vae, False)
    return latents


@torch.no_grad()
def reconstruct(vae: AutoencoderOobleck, audio: Tensor) -> Tensor:
    """Waveforms (N, 1, samples) that the mean latents of 16-bit audio (N, samples) are decoded to."""
    return torch.cat([vae.decode(vae.encode(waveforms(b)).latent_dist.mean).sample for b in audio.split(50)])
