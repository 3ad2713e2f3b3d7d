"""Captions and labels of pocket teachers whose samples have two properties, such as a class and a motion."""

from collections.abc import Callable

import torch
from torch import Tensor

Captions = Callable[[int, int], list[str]]


def every_caption(first: int, second: int, *kinds: Captions) -> list[str]:
    """The captions of all pairs of `first` and `second` values of the two properties, each caption once."""
    pairs = ((i, j) for i in range(first) for j in range(second))
    return list(dict.fromkeys(caption for pair in pairs for kind in kinds for caption in kind(*pair)))


def balanced_pairs(count: int, first: int, second: int, stride: int) -> Tensor:
    """Labels (count, 2) that cycle through all pairs in a fixed order.

    Neighbours differ in both properties: the second one moves on by `stride` with each value of the first.
    """
    index = torch.arange(count)
    one = index % first
    return torch.stack([one, (index // first + stride * one) % second], dim=1)


def prompts_of(labels: Tensor, pairs: int, captions: Captions) -> list[str]:
    """A prompt for each label (N, 2). Equal labels get each of their phrasings in turn.

    Args:
        labels: Pairs of properties.
        pairs: The number of different labels.
        captions: All phrasings of a label.
    """
    phrasings = [captions(*label) for label in labels.tolist()]
    return [options[(k // pairs + k) % len(options)] for k, options in enumerate(phrasings)]
