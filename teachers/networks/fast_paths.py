"""PyTorch's fused inference paths of `nn.MultiheadAttention` and `nn.TransformerEncoderLayer`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """A context in which these modules call their parts.

    A fused path has no forward derivative. It also reads the weights of the module's linear layers without calling
    them, so it would silently skip the LoRA adapters on them.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
