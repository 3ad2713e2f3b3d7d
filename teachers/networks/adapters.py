"""LoRA (Hu et al. 2021, arXiv 2106.09685): several adapters on one frozen network, for `memory.tier=lora`.

    teacher.enable_lora(rank=64)  # the teacher's denoiser: the base without an active adapter
    student = teacher.student()   # each copy is another adapter on the same base

A `Denoiser` with an `Adapted` network activates its adapter for the duration of each call. Recomputation by activation
checkpointing activates the same adapter again (`teachers.networks.checkpointing`). peft's layers hold the adapters;
peft's own switch is not used, because it also changes which parameters require gradients.

An adapter consists of low-rank changes of all linear layers and convolutions, and of its own copy of the first layer of
each time embedding: sCM rescales the student's time input, while the base keeps the teacher's. A student that samples
at N times needs a change of rank N in that layer, so a LoRA file can store it (`teachers.core.lora`).
"""

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn

from teachers.networks.fast_paths import without_fast_paths
from teachers.networks.quantized import QuantizedLinear
from teachers.networks.storage import CONVOLUTIONS, StoredConvolution, StoredLinear, plain_layer, store
from teachers.networks.time_layers import TimeEmbedding
from teachers.support.private_api import set_active_adapters


class LoraBase:
    """A frozen network and its adapters, one of which may be active.

    It is not an `nn.Module`, so that modules which hold it do not own the base's weights.

    Args:
        base: The network; it is frozen and converted by `storage.store`, in place.
        rank: Rank of the adapters.
        time_embeddings: The time embeddings of `base`.

    Attributes:
        base_time_layers: The base's own first layers of `time_embeddings`.
        adapted: Names of the layers that peft has replaced: all in `ranks`, or none before the first adapter.
        ranks: Rank of the low-rank change of each layer, by the layer's name.
    """

    def __init__(self, base: nn.Module, rank: int, time_embeddings: Sequence[TimeEmbedding]) -> None:
        store(base.requires_grad_(False))
        self.base, self.rank, self.time_embeddings = base, rank, time_embeddings
        self.base_time_layers: list[nn.Module] = [embedding.layer for embedding in time_embeddings]
        self.adapted: list[str] = []
        self._time_layers: Sequence[nn.Module] = self.base_time_layers  # those in use
        self._active: list[str] = []  # every layer holds this list; changing it switches the adapter of all layers
        self._count = 0
        # A rank above the smaller side of a weight matrix adds nothing. Depthwise convolutions get no adapter, nor does
        # `nn.MultiheadAttention`, which reads the weight of its output projection without calling it, nor do the
        # projections of motion layers, which are called with an argument's name that peft's layers do not have.
        uncalled = {id(m.out_proj) for m in base.modules() if isinstance(m, nn.MultiheadAttention)}
        motion = [m for m in base.modules() if isinstance(m, AnimateDiffTransformer3D)]
        uncalled |= {id(layer) for m in motion for layer in (m.proj_in, m.proj_out)}
        self.ranks = {
            name: min(rank, *_sides(layer))
            for name, layer in base.named_modules()
            if (isinstance(layer, nn.Linear) and layer not in self.base_time_layers and id(layer) not in uncalled)
            or (isinstance(layer, CONVOLUTIONS) and layer.groups == 1)
        }

    def add(self) -> str:
        """Add an adapter that changes nothing yet.

        Returns:
            The adapter's name.

        Raises:
            ValueError: If peft is not installed.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ValueError('memory.tier=lora needs peft: pip install -e ".[lora]"') from error
        name = f"adapter_{self._count}"
        self._count += 1
        small = {re.escape(path): rank for path, rank in self.ranks.items() if rank < self.rank}
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank,  # a scale of 1, which readers of LoRA files assume
            target_modules="|".join(map(re.escape, self.ranks)),
            rank_pattern=small,
            alpha_pattern=small,
        )
        trainable = [p for p in self.base.parameters() if p.requires_grad]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            on_meta = next(self.base.parameters()).is_meta
            inject_adapter_in_model(config, self.base, name, low_cpu_mem_usage=on_meta)
        for parameter in trainable:  # of other adapters; peft froze them
            parameter.requires_grad_(True)
        for path, rank in self.ranks.items():
            layer = self.layer(path)
            set_active_adapters(layer, self._active)
            layer.cast_input_dtype_enabled = False  # inputs are float32, or autocast converts them
            assert layer.lora_A[name].weight.shape[0] == rank
        self.adapted = list(self.ranks)
        return name

    def layer(self, path: str) -> Any:
        """peft's layer with the name `path`."""
        return self.base.get_submodule(path)

    @contextmanager
    def activate(self, name: str | None, time_layers: Sequence[nn.Module]) -> Iterator[nn.Module]:
        """A context in which an adapter is active.

        Args:
            name: The adapter; None for the base alone.
            time_layers: The first layers of the time embeddings.

        Yields:
            The base.
        """
        before = list(self._active), self._time_layers
        self._switch([name] if name else [], time_layers)
        try:
            with without_fast_paths():
                yield self.base
        finally:
            self._switch(*before)

    def pin(self) -> Callable[[], AbstractContextManager[Any]]:
        """Return a function that creates contexts with the adapter that is active now."""
        name, time_layers = (self._active[0] if self._active else None), self._time_layers
        return lambda: self.activate(name, time_layers)

    def _switch(self, active: list[str], time_layers: Sequence[nn.Module]) -> None:
        self._active[:] = active
        if time_layers is not self._time_layers:
            for embedding, layer in zip(self.time_embeddings, time_layers, strict=True):
                setattr(embedding.owner, embedding.child, layer)
            self._time_layers = time_layers


class Adapted(nn.Module):
    """A base network with one adapter; it is called as the base is.

    Its parameters are those of the adapter, in float32. A deep copy is another adapter with the same weights. A deep
    copy of an instance without an adapter has a new adapter.

    Args:
        lora_base: The base and its adapters.
        new_adapter: Whether to add an adapter. If not, this is the base alone, without parameters.

    Attributes:
        name: The adapter's name; None without an adapter.
        low_rank: peft's matrices "A" and "B" of each layer, by the layer's name with "/" for ".".
        time_layers: The adapter's own first layers of the time embeddings.
    """

    def __init__(self, lora_base: LoraBase, new_adapter: bool = False) -> None:
        super().__init__()
        self.lora_base = lora_base
        self.name = lora_base.add() if new_adapter else None
        self.low_rank, self.time_layers = nn.ModuleDict(), nn.ModuleList()
        if self.name:
            for path in lora_base.ranks:
                layer = lora_base.layer(path)
                pair = nn.ModuleDict({"A": layer.lora_A[self.name], "B": layer.lora_B[self.name]})
                self.low_rank[path.replace(".", "/")] = pair.float()
            self.time_layers.extend(plain_layer(layer).requires_grad_(True) for layer in lora_base.base_time_layers)
        self._active_time_layers: Sequence[nn.Module] = (
            tuple(self.time_layers) if self.name else lora_base.base_time_layers
        )

    @property
    def config(self) -> Any:
        """The base network's config."""
        return self.lora_base.base.config

    def activate(self) -> AbstractContextManager[nn.Module]:
        """A context in which this adapter is active on the base; it yields the base."""
        return self.lora_base.activate(self.name, self._active_time_layers)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the base with this adapter."""
        with self.activate() as base:
            return base(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Adapted":
        copied = Adapted(self.lora_base, new_adapter=True).to(next(self.lora_base.base.parameters()).device)
        if self.name:
            copied.load_state_dict(self.state_dict())
        memo[id(self)] = copied
        return copied

    def merged_copy(self) -> nn.Module:
        """An ordinary float32 copy of the base, frozen, with this adapter's changes merged into its weights."""
        memo: dict[int, Any] = {}
        with self.activate() as base:
            for module in base.modules():
                if isinstance(module, StoredLinear | StoredConvolution | QuantizedLinear):
                    memo[id(module)] = plain_layer(module)
            for path in self.lora_base.adapted:
                layer = self.lora_base.layer(path)
                change = weight_change(layer, self.name) if self.name else None
                memo[id(layer)] = plain_layer(layer.base_layer, change)
            network = copy.deepcopy(base, memo)
        network.__dict__.pop("peft_config", None)
        return network.requires_grad_(False)


def _sides(layer: Any) -> tuple[int, int]:
    """Rows and columns of the weight matrix of a linear layer or a convolution."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return len(layer.weight), layer.weight[0].numel()


def weight_change(layer: Any, name: str) -> Tensor:
    """What the adapter `name` adds to the weight of a peft layer.

    `get_delta_weight` of peft takes a three-dimensional convolution whose kernel begins with 1 x 1 for a
    two-dimensional one.
    """
    if layer.base_layer.weight.ndim != 5 or layer.base_layer.groups != 1:
        change: Tensor = layer.get_delta_weight(name)
        return change
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return torch.einsum("or,r...->o...", up.flatten(1), down) * layer.scaling[name]


def active_network(network: nn.Module) -> AbstractContextManager[nn.Module]:
    """A context with the diffusers network of `network`, its adapter active, for code that accesses its modules."""
    return network.activate() if isinstance(network, Adapted) else nullcontext(network)


def unwrap(network: nn.Module) -> nn.Module:
    """The diffusers network of `network`; which adapter is active does not change."""
    return network.lora_base.base if isinstance(network, Adapted) else network


def merged_copy(network: nn.Module) -> nn.Module:
    """An ordinary diffusers network that computes what `network` does and shares no weights with it."""
    return network.merged_copy() if isinstance(network, Adapted) else copy.deepcopy(network)
