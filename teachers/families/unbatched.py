"""Conditions of stock pipelines that pad the prompts of a batch to the longest: each prompt is encoded alone."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from teachers.core.denoiser import Condition


def encode_each(prompts: Sequence[str], encode: Callable[[str], Condition]) -> Condition:
    """One condition for all prompts, each of which is encoded once and alone.

    Args:
        prompts: The prompts, B of them.
        encode: Encodes one prompt; its tensors (1, ...) have the same shapes for all prompts.

    Returns:
        Tensors (B, ...).
    """
    found = {prompt: encode(prompt) for prompt in dict.fromkeys(prompts)}
    rows = [found[prompt] for prompt in prompts]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def padded(tokens: Tensor, length: int) -> Tensor:
    """Tokens (B, N, ...) with zeros up to the length (B, length, ...)."""
    missing = tokens.new_zeros(len(tokens), length - tokens.shape[1], *tokens.shape[2:])
    return torch.cat([tokens, missing], dim=1)
