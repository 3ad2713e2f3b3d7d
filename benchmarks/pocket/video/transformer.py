"""Training of the pocket video teacher's transformer with its text encoder."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5TokenizerFast

from benchmarks.pocket.machine import CPU, Machine
from benchmarks.pocket.texts import Captions, once
from benchmarks.pocket.training import train
from teachers.media.motion import MOTIONS
from teachers.pocket_video.captions import OBJECTS, captions, vague_captions
from teachers.pocket_video.parts import FLOW_SHIFT, LENGTH, make_text_encoder, make_transformer

BATCH = 64
TIMESTEPS = 1000


class Denoiser(nn.Module):
    """Transformer and text encoder, called as `WanPipeline` calls them."""

    def __init__(self, tokenizer: T5TokenizerFast) -> None:
        super().__init__()
        self.transformer, self.text = make_transformer(), make_text_encoder(tokenizer)

    def forward(self, noisy: Tensor, level: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The velocity at noise levels in [0, 1], (B,). Padding is zeros that the transformer sees, as in Wan."""
        text = once(tokens, mask, lambda ids, masks: self.text(ids, attention_mask=masks)[0] * masks[..., None])
        velocity: Tensor = self.transformer(
            noisy, timestep=level * TIMESTEPS, encoder_hidden_states=text, return_dict=False
        )[0]
        return velocity


def train_transformer(
    latents: Tensor,
    labels: Tensor,
    tokenizer: T5TokenizerFast,
    steps: int,
    work: Path,
    batch: int = BATCH,
    machine: Machine = CPU,
) -> Denoiser:
    """Train on the velocity of the flow (1 - s) x + s z, which is z - x; returns the EMA.

    Args:
        latents: Latents with deviation 1, (N, 8, 3, 8, 8).
        labels: Their classes and motions, (N, 2).
        tokenizer: The tokenizer.
        steps: The number of updates.
        work: The folder of the checkpoint.
        batch: Samples of an update.
        machine: The device and its time.
    """
    torch.manual_seed(0)
    model = Denoiser(tokenizer).train()
    device = machine.device
    properties = len(OBJECTS), len(MOTIONS)
    texts = Captions(properties, captions, vague_captions, labels, tokenizer, LENGTH, device)
    latents = latents.to(device)

    def loss(rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rows, caption, dropped = texts.draw(batch, rng)
        caption = torch.where(dropped, len(texts.tokens) - 1, caption)  # the empty caption
        draw = {"generator": rng, "device": device}
        u = (torch.arange(batch, device=device) + torch.rand(batch, **draw)) / batch  # stratified
        level = FLOW_SHIFT * u / (1 + (FLOW_SHIFT - 1) * u)  # the solver's levels are shifted likewise
        x, s = latents[rows].float(), level[:, None, None, None, None]
        z = torch.randn(x.shape, **draw)
        velocity = model((1 - s) * x + s * z, level, texts.tokens[caption], texts.masks[caption])
        value = F.mse_loss(velocity, z - x)
        return value, {"loss": value}

    state = work / "transformer.pt"
    return train("transformer", model, loss, steps, 1.5e-3, state, ema=0.999, weight_decay=1e-2, machine=machine)
