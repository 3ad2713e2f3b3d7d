"""A stand-in for the pocket video teacher: its architecture and files with random weights."""

from pathlib import Path

import torch
from diffusers import WanPipeline
from safetensors.torch import save_file

from benchmarks.pocket.video.data import render
from teachers.pocket_video import balanced_labels
from teachers.pocket_video.judges import FEATURES, ClipJudge
from teachers.pocket_video.parts import (
    LATENT,
    make_autoencoder,
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
    make_transformer,
)

ROWS = 80


def write_weights(folder: Path) -> Path:
    """Write the weights, and return their folder."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    WanPipeline(
        tokenizer=tokenizer,
        text_encoder=make_text_encoder(tokenizer),
        transformer=make_transformer(),
        vae=make_autoencoder(),
        scheduler=make_scheduler(),
    ).save_pretrained(folder / "pipeline")
    judge = {key: value.contiguous() for key, value in ClipJudge().state_dict().items()}
    save_file(judge, folder / "judge.safetensors")
    features = torch.rand(200, FEATURES, dtype=torch.float64)
    statistics = {"mean": features.mean(0), "covariance": features.T.cov().contiguous(), "features": features.half()}
    save_file(statistics, folder / "reference.safetensors")
    latents = torch.randint(-60, 60, (ROWS, *LATENT), dtype=torch.int8)
    labels = balanced_labels(ROWS).to(torch.uint8)
    save_file({"latents": latents, "labels": labels}, folder / "latents.safetensors")
    return folder


def moving_clips(motions: torch.Tensor) -> torch.Tensor:
    """Clips (N, 3, 9, 32, 32) in [0, 1] of an L-shaped object with these motions (N,)."""
    pictures = torch.zeros(len(motions), 28, 28, dtype=torch.uint8)
    pictures[:, 6:22, 8:14] = 200
    pictures[:, 18:24, 8:22] = 255
    return render(pictures, motions, torch.Generator().manual_seed(0)) / 2 + 0.5
