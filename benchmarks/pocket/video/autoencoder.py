"""Training and use of the pocket video teacher's autoencoder."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor
from tqdm import tqdm

from benchmarks.pocket.machine import CPU, Machine
from benchmarks.pocket.training import train
from benchmarks.pocket.video.data import random_clips
from teachers.pocket_video.parts import make_autoencoder

BATCH = 16
PARALLEL, PARALLEL_GPU = 32, 256  # clips that are encoded or decoded at a time
CHANGE_WEIGHT = 0.5  # of errors in the difference of successive frames: flicker
KL_WEIGHT = 2e-6  # as of the pocket image teacher's autoencoder


def train_autoencoder(
    photographs: Tensor, labels: Tensor, steps: int, work: Path, batch: int = BATCH, machine: Machine = CPU
) -> AutoencoderKLWan:
    """Train the autoencoder; its configuration receives mean and deviation of the latents, as Wan's has them."""
    torch.manual_seed(0)
    photographs, labels = photographs.to(machine.device), labels.to(machine.device)

    def loss(rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        clips, _ = random_clips(photographs, labels, batch, rng)
        posterior = vae.encode(clips).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng, device=machine.device)
        output = vae.decode(posterior.mean + posterior.std * noise).sample
        error = output - clips
        wrong = error.square().mean() + 0.2 * error.abs().mean()
        flicker = F.mse_loss(output.diff(dim=2), clips.diff(dim=2))
        value = wrong + CHANGE_WEIGHT * flicker + KL_WEIGHT * posterior.kl().mean()
        return value, {"error": error.abs().mean(), "flicker": flicker}

    vae = make_autoencoder().train()
    trained = train("autoencoder", vae, loss, steps, 2e-3, work / "vae.pt", ema=0.998, machine=machine)
    return standardise(trained, photographs, labels)


@torch.no_grad()
def standardise(vae: AutoencoderKLWan, photographs: Tensor, labels: Tensor, count: int = 512) -> AutoencoderKLWan:
    """Store mean and deviation of the latents of real clips in the configuration."""
    rng = torch.Generator(photographs.device).manual_seed(-1)
    latents = encode(vae, random_clips(photographs, labels, count, rng)[0], raw=True)
    mean, deviation = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKLWan, clips: Tensor, raw: bool = False) -> Tensor:
    """Latents (N, 8, 3, 8, 8) of clips in [-1, 1]: with mean 0 and deviation 1, or `raw`."""
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in clips.split(_parallel(clips))])
    if raw:
        return latents
    return (latents - _column(vae.config.latents_mean, latents)) / _column(vae.config.latents_std, latents)


@torch.no_grad()
def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Clips (N, 3, 9, 32, 32) in [0, 1] of latents with mean 0 and deviation 1."""
    raw = latents * _column(vae.config.latents_std, latents) + _column(vae.config.latents_mean, latents)
    return torch.cat([vae.decode(batch).sample for batch in raw.split(_parallel(raw))]).div(2).add(0.5).clamp(0, 1)


def encode_random(
    vae: AutoencoderKLWan, photographs: Tensor, labels: Tensor, count: int, seed: int, machine: Machine = CPU
) -> dict[str, Tensor]:
    """Latents of `count` random clips, and their classes and motions, on the machine's device."""
    vae.to(machine.device)  # type: ignore[arg-type]
    photographs, labels = photographs.to(machine.device), labels.to(machine.device)
    batch = 4 * PARALLEL_GPU if machine.gpu else 2 * PARALLEL
    latents, wanted = [], []
    for number in tqdm(range(0, count, batch), desc="latents", mininterval=20):
        rng = machine.generator(seed + number)
        clips, both = random_clips(photographs, labels, min(batch, count - number), rng)
        latents.append(encode(vae, clips).half())
        wanted.append(both)
    return {"latents": torch.cat(latents), "labels": torch.cat(wanted)}


def _parallel(values: Tensor) -> int:
    return PARALLEL if values.device.type == "cpu" else PARALLEL_GPU


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device)[:, None, None, None]
