"""Latents as tokens of 2 x 2 patches, as the transformers of Flux.1 and later models take them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """Tokens (B, H W / 4, 4 C) of latents (B, C, H, W)."""
    return F.pixel_unshuffle(latents, 2).flatten(2).mT


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Latents (B, C, height, width) of tokens (B, H W / 4, 4 C).

    Latents (B, C, H, W) or (B, 1, C, H, W), which pipelines draw before they pack them, become (B, C, H, W).
    """
    if tokens.ndim != 3:
        return tokens.reshape(len(tokens), -1, height, width)
    return F.pixel_shuffle(tokens.mT.unflatten(2, (height // 2, width // 2)), 2)


def positions(height: int, width: int, start: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    """The positions (height width, 3) of tokens: a constant, the row and the column, each from `start`."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    found = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
    return found + torch.tensor(start)
