"""Text encoders in training."""

from collections.abc import Callable

import torch
from torch import Tensor


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
