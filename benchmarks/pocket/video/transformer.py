"""Training of the pocket video teacher's transformer with its text encoder."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5TokenizerFast

from benchmarks.pocket.machine import CPU, Machine
from benchmarks.pocket.texts import once
from benchmarks.pocket.training import train
from teachers.media.motion import MOTIONS
from teachers.pocket_video.captions import OBJECTS, captions, vague_captions
from teachers.pocket_video.parts import FLOW_SHIFT, LENGTH, make_text_encoder, make_transformer

BATCH = 64
DROPPED = 0.1  # share of samples with the empty caption
VAGUE = 0.15  # share of captions that name the class or the motion only
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
    texts = [captions(c, m) + vague_captions(c, m) for c in range(len(OBJECTS)) for m in range(len(MOTIONS))]
    named, every = len(captions(0, 0)), len(texts[0])
    encoded = tokenizer(
        [text for group in texts for text in group] + [""],
        padding="max_length",
        max_length=LENGTH,
        truncation=True,
        return_tensors="pt",
    )
    device = machine.device
    tokens, masks = encoded.input_ids.to(device), encoded.attention_mask.to(device)
    pair = (labels[:, 0] * len(MOTIONS) + labels[:, 1]).to(device)
    latents = latents.to(device)

    def loss(rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        draw = {"generator": rng, "device": device}
        rows = torch.randint(len(latents), (batch,), **draw)
        exact = torch.randint(named, (batch,), **draw)
        vague = torch.randint(named, every, (batch,), **draw)
        caption = pair[rows] * every + torch.where(torch.rand(batch, **draw) < VAGUE, vague, exact)
        caption = torch.where(torch.rand(batch, **draw) < DROPPED, len(texts) * every, caption)
        u = (torch.arange(batch, device=device) + torch.rand(batch, **draw)) / batch  # stratified
        level = FLOW_SHIFT * u / (1 + (FLOW_SHIFT - 1) * u)  # the solver's levels are shifted likewise
        x, s = latents[rows].float(), level[:, None, None, None, None]
        z = torch.randn(x.shape, **draw)
        velocity = model((1 - s) * x + s * z, level, tokens[caption], masks[caption])
        value = F.mse_loss(velocity, z - x)
        return value, {"loss": value}

    state = work / "transformer.pt"
    return train("transformer", model, loss, steps, 1.5e-3, state, ema=0.999, weight_decay=1e-2, machine=machine)
