"""Training of the pocket audio teacher's transformer with its text encoder and its projection of the seconds."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import T5TokenizerFast

from benchmarks.pocket.machine import CPU, Machine
from benchmarks.pocket.texts import Captions, once
from benchmarks.pocket.training import train
from teachers.pocket_audio.captions import INSTRUMENTS, NOTES, captions, vague_captions
from teachers.pocket_audio.parts import (
    LATENT_LENGTH,
    LENGTH,
    SECONDS,
    make_projection,
    make_text_encoder,
    make_transformer,
)

BATCH = 32
CENTRE, WIDTH_OF_LOG_SIGMA = 1.0, 1.4  # of the logarithm of the noise-to-signal ratio; pitch is decided above 1


class Denoiser(nn.Module):
    """Transformer, text encoder and projection, called as `StableAudioPipeline` calls them."""

    def __init__(self, tokenizer: T5TokenizerFast) -> None:
        super().__init__()
        self.transformer, self.text, self.projection = (
            make_transformer(),
            make_text_encoder(tokenizer),
            make_projection(),
        )
        head = self.transformer.config.attention_head_dim
        rotary = get_1d_rotary_pos_embed(head // 2, LATENT_LENGTH + 1, use_real=True, repeat_interleave_real=False)
        for name, values in zip(("cosine", "sine"), rotary, strict=True):
            self.register_buffer(name, values, persistent=False)
        for name, value in (("begin", 0.0), ("end", SECONDS)):
            self.register_buffer(name, torch.tensor([value]), persistent=False)

    def forward(self, noisy: Tensor, angle: Tensor, tokens: Tensor, mask: Tensor, dropped: Tensor) -> Tensor:
        """The velocity at an angle in [0, pi / 2], (B,); samples with `dropped` see zeros instead of their caption."""
        text = once(tokens, mask, lambda ids, masks: self.text(ids, attention_mask=masks)[0] * masks[..., None])
        seconds = self.projection(text_hidden_states=None, start_seconds=self.begin, end_seconds=self.end)
        start, end = (
            s.expand(len(noisy), -1, -1)
            for s in (seconds.seconds_start_hidden_states, seconds.seconds_end_hidden_states)
        )
        condition = torch.cat([text, start, end], dim=1) * ~dropped[:, None, None]
        velocity: Tensor = self.transformer(
            noisy,
            angle * 2 / math.pi,
            encoder_hidden_states=condition,
            global_hidden_states=torch.cat([start, end], dim=2),
            rotary_embedding=(self.cosine, self.sine),
            return_dict=False,
        )[0]
        return velocity


def train_transformer(
    latents: Tensor,
    labels: Tensor,
    tokenizer: T5TokenizerFast,
    steps: int,
    work: Path,
    noise: float,
    batch: int = BATCH,
    machine: Machine = CPU,
) -> Denoiser:
    """Train on the velocity of TrigFlow, dz/dt of cos(t) x + sin(t) z; returns the EMA.

    Args:
        latents: Mean latents, (N, channels, length).
        labels: Their instruments and notes, (N, 2).
        tokenizer: The tokenizer.
        steps: The number of updates.
        work: The folder of the checkpoint.
        noise: The deviation of the autoencoder's posterior.
        batch: Samples of an update.
        machine: The device and its time.
    """
    torch.manual_seed(0)
    model = Denoiser(tokenizer).train()
    device = machine.device
    properties = len(INSTRUMENTS), len(NOTES)
    texts = Captions(properties, captions, vague_captions, labels, tokenizer, LENGTH, device)
    latents = latents.to(device)

    def loss(rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rows, caption, dropped = texts.draw(batch, rng)
        draw = {"generator": rng, "device": device}
        u = (torch.arange(batch, device=device) + torch.rand(batch, **draw)) / batch  # stratified
        angle = torch.atan(torch.exp(CENTRE + WIDTH_OF_LOG_SIGMA * torch.special.ndtri(u.clamp(1e-5, 1 - 1e-5))))
        clean = latents[rows].float()
        x = clean + noise * torch.randn(clean.shape, **draw)
        z = torch.randn(x.shape, **draw)
        cosine, sine = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
        with _precision(machine):
            velocity = model(cosine * x + sine * z, angle, texts.tokens[caption], texts.masks[caption], dropped)
        value = F.mse_loss(velocity.float(), cosine * z - sine * x)
        return value, {"loss": value}

    state = work / "transformer.pt"
    return train("transformer", model, loss, steps, 1.5e-3, state, ema=0.999, weight_decay=1e-2, machine=machine)


@contextmanager
def _precision(machine: Machine) -> Iterator[None]:
    """bfloat16 on a CPU, whose flash kernel is slow with it; a GPU has TensorFloat-32."""
    if machine.gpu:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
        yield
