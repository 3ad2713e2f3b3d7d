"""One frozen network under several LoRA adapters: the memory tier `lora` (LoRA: Hu et al. 2021, arXiv 2106.09685).

    teacher.enable_lora(rank=64)       # the teacher's denoiser: the base with no adapter on
    student = teacher.student()  # a copy is another adapter on the same base

A `Denoiser` around an `Adapted` network is pinned to its adapter for the length of each call, and so is whatever
activation checkpointing computes again in backward (`teachers.networks.checkpointing`), when another adapter may have been the
last one on. peft's layers hold the adapters; its own switch turns gradients off and on as it goes, and is left alone.

Beside low-rank changes of every linear layer and convolution, an adapter has the first layer of the time embedding for
its own, whole: sCM puts its student on another clock, and the base has to keep the teacher's. A student that is called
at N times needs a change of rank N there, so that a LoRA file can carry all of it (`teachers.core.lora`).
"""

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from diffusers.models.embeddings import TimestepEmbedding
from torch import nn

from teachers.networks.storage import StoredConv2d, StoredLinear, plain_layer, store


class LoraBase:
    """The frozen base and which of its adapters is on. No module: what holds it does not own the base's weights."""

    def __init__(self, base: nn.Module, rank: int, clocks: Sequence[TimestepEmbedding]) -> None:
        store(base.requires_grad_(False))
        self.base, self.rank, self.clocks = base, rank, clocks
        self.native: list[nn.Module] = [embedding.linear_1 for embedding in clocks]
        self._now: Sequence[nn.Module] = self.native
        self._active: list[str] = []  # one list that every layer looks into: switching is writing into it
        self._count = 0
        self.adapted: list[str] = []  # layers that are peft's by now: all, or none before the first adapter
        # A rank above a matrix's smaller side would add nothing. Depthwise convolutions have no matrix to speak of.
        self.ranks = {
            name: min(rank, len(layer.weight), layer.weight[0].numel())
            for name, layer in base.named_modules()
            if (isinstance(layer, nn.Linear) and layer not in self.native)
            or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        }

    def add(self) -> str:
        """A fresh adapter, which changes nothing yet; its name. ValueError where peft is not installed."""
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ValueError('memory.tier=lora needs peft: pip install -e ".[lora]"') from error
        name = f"adapter_{self._count}"
        self._count += 1
        small = {re.escape(path): rank for path, rank in self.ranks.items() if rank < self.rank}
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank,  # a scale of 1, which is what readers of LoRA files assume
            target_modules="|".join(map(re.escape, self.ranks)),
            rank_pattern=small,
            alpha_pattern=small,
        )
        trainable = [p for p in self.base.parameters() if p.requires_grad]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            on_meta = next(self.base.parameters()).is_meta
            inject_adapter_in_model(config, self.base, name, low_cpu_mem_usage=on_meta)
        for parameter in trainable:  # of other adapters, which peft has switched off
            parameter.requires_grad_(True)
        for path, rank in self.ranks.items():
            layer = self.layer(path)
            layer._active_adapter = self._active
            layer.cast_input_dtype_enabled = False  # inputs are float32, or autocast's to cast
            assert layer.lora_A[name].weight.shape[0] == rank
        self.adapted = list(self.ranks)
        return name

    def layer(self, path: str) -> Any:
        """peft's layer at `path`."""
        return self.base.get_submodule(path)

    @contextmanager
    def activate(self, name: str | None, clocks: Sequence[nn.Module]) -> Iterator[nn.Module]:
        """The base with the adapter `name` on (None: none) and `clocks` for the first layers of its time embeddings."""
        before = list(self._active), self._now
        self._switch([name] if name else [], clocks)
        try:
            yield self.base
        finally:
            self._switch(*before)

    def pin(self) -> Callable[[], AbstractContextManager[Any]]:
        """What gives, later, the context of what is on now."""
        name, clocks = (self._active[0] if self._active else None), self._now
        return lambda: self.activate(name, clocks)

    def _switch(self, active: list[str], clocks: Sequence[nn.Module]) -> None:
        self._active[:] = active
        if clocks is not self._now:
            for embedding, layer in zip(self.clocks, clocks, strict=True):
                embedding.linear_1 = layer
            self._now = clocks


class Adapted(nn.Module):
    """A shelf's base under one adapter, called as the base is; without `fresh` the base itself, with no parameters.

    Its parameters are the adapter's alone, in float32. A deep copy is another adapter with the same weights; a deep
    copy of the base itself is a fresh adapter.
    """

    def __init__(self, lora_base: LoraBase, fresh: bool = False) -> None:
        super().__init__()
        self.lora_base = lora_base
        self.name = lora_base.add() if fresh else None
        self.low_rank, self.clocks = nn.ModuleDict(), nn.ModuleList()
        if self.name:
            for path in lora_base.ranks:
                layer = lora_base.layer(path)
                pair = nn.ModuleDict({"A": layer.lora_A[self.name], "B": layer.lora_B[self.name]})
                self.low_rank[path.replace(".", "/")] = pair.float()
            self.clocks.extend(plain_layer(native).requires_grad_(True) for native in lora_base.native)
        self._first: Sequence[nn.Module] = tuple(self.clocks) if self.name else lora_base.native

    @property
    def config(self) -> Any:
        return self.lora_base.base.config

    def on(self) -> AbstractContextManager[nn.Module]:
        """The context in which the base runs under this adapter; as a value, the base."""
        return self.lora_base.activate(self.name, self._first)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.on() as base:
            return base(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Adapted":
        made = Adapted(self.lora_base, fresh=True).to(next(self.lora_base.base.parameters()).device)
        if self.name:
            made.load_state_dict(self.state_dict())
        memo[id(self)] = made
        return made

    def merged_copy(self) -> nn.Module:
        """The base with this adapter's changes in its weights: an ordinary float32 network of its own."""
        memo: dict[int, Any] = {}
        with self.on() as base:
            for module in base.modules():
                if isinstance(module, StoredLinear | StoredConv2d):
                    memo[id(module)] = plain_layer(module)
            for path in self.lora_base.adapted:
                layer = self.lora_base.layer(path)
                change = layer.get_delta_weight(self.name) if self.name else None
                memo[id(layer)] = plain_layer(layer.base_layer, change)
            network = copy.deepcopy(base, memo)
        network.__dict__.pop("peft_config", None)
        return network.requires_grad_(False)


def active_network(network: nn.Module) -> AbstractContextManager[nn.Module]:
    """The diffusers network itself, as `network` runs it, for whoever looks into it or edits it."""
    return network.on() if isinstance(network, Adapted) else nullcontext(network)


def unwrap(network: nn.Module) -> nn.Module:
    """The diffusers network itself, under whatever adapter is on."""
    return network.lora_base.base if isinstance(network, Adapted) else network


def merged_copy(network: nn.Module) -> nn.Module:
    """A copy of `network` that shares nothing with it and is an ordinary diffusers network."""
    return network.merged_copy() if isinstance(network, Adapted) else copy.deepcopy(network)
