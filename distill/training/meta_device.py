"""Networks on the meta device, where tensors have shapes but no data, and counting the bytes of live tensors."""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from teachers.core.teacher import Teacher
from teachers.loading.location import config_source
from teachers.loading.sketch import add_text_encoders, sketch
from teachers.networks.adapters import unwrap
from teachers.networks.storage import imitates_autocast

META = torch.device("meta")


class MemoryTracker(TorchDispatchMode):
    """A context that counts the bytes of live tensors on a device.

    Args:
        known: Tensors that exist already and are not counted.
        device: The device.

    Attributes:
        now: Bytes of the tensors that are live now.
        peak: The maximum of `now`.
    """

    def __init__(self, known: Iterable[Tensor], device: torch.device = META) -> None:
        super().__init__()
        self.device = device
        self.now = self.peak = 0
        self._seen: Any = WeakIdKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device == self.device:
                storage = leaf.untyped_storage()
                if storage not in self._seen:
                    self._seen[storage] = None
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, size: int) -> None:
        self.now -= size


class FusedAttention(torch.autograd.Function):
    """Attention that saves what a fused kernel saves for backward: inputs, output and one number for each row.

    Computes shapes only; all tensors are (B, H, L, E).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, rows = query.shape[:3]
        output = query.new_empty(batch, rows, heads, value.shape[-1]).transpose(1, 2)  # the kernels' memory layout
        ctx.save_for_backward(query, key, value, output, query.new_empty(batch, heads, rows, dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def _cast(value: Any, kind: torch.dtype) -> Any:
    return value.to(kind) if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def patch_meta_ops(precision: str) -> Iterator[None]:
    """A context that adds fused attention and autocast to the meta device.

    Forward-mode derivatives have neither: they run without autocast, and their attention has a rule of its own.

    It replaces the functions themselves, because a `TorchFunctionMode` is not active when activation checkpointing
    computes blocks again in the backward pass, unless it enters itself again there as `MetaMasks` does.

    Args:
        precision: The recipe's train.precision.
    """
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    convolutions = [f"{kind}{rank}d" for kind in ("conv", "conv_transpose") for rank in (1, 2, 3)]
    kinds = dict.fromkeys(("linear", *convolutions, "scaled_dot_product_attention"), half)
    kinds |= dict.fromkeys(("group_norm", "layer_norm", "rms_norm", "softmax"), torch.float32 if half else None)

    def replace(name: str, kind: torch.dtype | None) -> Any:
        function = getattr(F, name)

        def replacement(*args: Any, **kwargs: Any) -> Any:
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            if all(x.device != META for x in tensors) or any(unpack_dual(x)[1] is not None for x in tensors):
                return function(*args, **kwargs)
            if kind is not None and imitates_autocast():
                args = tuple(_cast(x, kind) for x in args)
                kwargs = {key: _cast(x, kind) for key, x in kwargs.items()}
            if name == "scaled_dot_product_attention":
                query, key, value = (*args, *(kwargs[x] for x in ("query", "key", "value") if x in kwargs))[:3]
                if query.ndim == 4:
                    return FusedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
            return function(*args, **kwargs)

        return replacement

    with ExitStack() as stack:
        for name, kind in kinds.items():
            stack.enter_context(patch.object(F, name, replace(name, kind)))
        stack.enter_context(MetaMasks())
        yield


class MetaMasks(TorchFunctionMode):
    """A context in which masks without values are true everywhere, and their inverses select nothing.

    Methods of `Tensor` are not replaced: a class to which `__getitem__` was assigned once remains a sequence for
    Python, and torch 2.12 then cannot make a tensor of a list of scalars.
    """

    def __init__(self) -> None:
        super().__init__()
        self._inverses: Any = WeakIdKeyDictionary()

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if function is Tensor.backward and len(args) == 1 and not kwargs:
            with self:  # activation checkpointing computes blocks again
                return torch.autograd.backward(args[0])
        if name == "__bool__" and args[0].is_meta:
            return True
        if name == "__getitem__" and self._is_mask(args[1]):
            return args[0][slice(0 if args[1] in self._inverses else None)]
        result = function(*args, **kwargs)
        if name in ("__invert__", "bitwise_not", "logical_not") and self._is_mask(args[0]):
            self._inverses[result] = None
        return result

    @staticmethod
    def _is_mask(value: Any) -> bool:
        return isinstance(value, Tensor) and value.is_meta and value.dtype == torch.bool


def build_on_meta(
    family: type[Teacher], path: str, dtype: torch.dtype, size: Mapping[str, float] | None = None
) -> Teacher:
    """The teacher at `path` on the meta device, with its text encoders, which define the shapes of conditions.

    Args:
        family: The teacher's family.
        path: A pipeline's folder, a Hub id or a .safetensors file.
        dtype: The precision of the frozen weights.
        size: Size of a sample, as `Teacher.load` takes it.
    """
    teacher = sketch(path, family, size)
    add_text_encoders(teacher, config_source(path))
    teacher.denoiser.to(dtype)
    if dtype == torch.float16:  # as in `load_pipeline`, which keeps these modules in float32 for bfloat16
        for module in resident_modules(teacher):
            nn.Module.to(module, dtype)  # diffusers' own method prints warnings
    return teacher


def resident_modules(teacher: Teacher) -> list[nn.Module]:
    """The teacher's networks that stay in memory during training, other than its denoising network."""
    stock = vars(teacher).get("stock")
    parts = {name: part for name, part in stock.components.items() if isinstance(part, nn.Module)} if stock else {}
    network = unwrap(teacher.denoiser.network)
    denoising = set(network.modules())
    return [part for name, part in parts.items() if part not in denoising and not name.startswith("text_encoder")]
