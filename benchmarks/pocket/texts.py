"""Captions and text encoders in training."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

VAGUE = 0.15  # share of captions that do not name everything
DROPPED = 0.1  # share of samples without their caption


class Captions:
    """Random captions of samples with two properties, such as a class and a motion.

    Args:
        properties: The number of values of both properties.
        exact, vague: The captions that name both properties, and those that do not.
        labels: The properties of the samples (N, 2).
        tokenizer: The tokenizer.
        length: Tokens of a caption with padding.
        device: Where captions are drawn.
    """

    def __init__(
        self,
        properties: tuple[int, int],
        exact: Callable[[int, int], list[str]],
        vague: Callable[[int, int], list[str]],
        labels: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        device: torch.device,
    ) -> None:
        pairs = [(i, j) for i in range(properties[0]) for j in range(properties[1])]
        texts: Sequence[str] = [text for pair in pairs for text in (*exact(*pair), *vague(*pair))]
        self.exact, self.all = len(exact(0, 0)), len(texts) // len(pairs)
        encoded = tokenizer([*texts, ""], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        self.tokens, self.masks = encoded.input_ids.to(device), encoded.attention_mask.to(device)
        self.pair = (labels[:, 0].long() * properties[1] + labels[:, 1].long()).to(device)
        self.device = device

    def draw(self, batch: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random samples: their rows (B,), the captions' indices (B,), and which are to lose their caption (B,)."""
        at = {"generator": rng, "device": self.device}
        rows = torch.randint(len(self.pair), (batch,), **at)
        exact = torch.randint(self.exact, (batch,), **at)
        vague = torch.randint(self.exact, self.all, (batch,), **at)
        caption = self.pair[rows] * self.all + torch.where(torch.rand(batch, **at) < VAGUE, vague, exact)
        return rows, caption, torch.rand(batch, **at) < DROPPED


def once(tokens: Tensor, mask: Tensor, encode: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`encode(tokens, mask)`, which a CPU computes only once for equal captions.

    Args:
        tokens: Tokens of captions (B, L).
        mask: 1 for tokens, 0 for padding (B, L).
        encode: The encoder of tokens (N, L) with a mask (N, L).

    Returns:
        The encoded captions (B, ...).
    """
    if tokens.device.type != "cpu":  # a GPU has time, and the number of distinct captions would have to be read from it
        return encode(tokens, mask)
    distinct, index = tokens.unique(dim=0, return_inverse=True)
    return encode(distinct, torch.zeros_like(distinct).index_copy_(0, index, mask))[index]
