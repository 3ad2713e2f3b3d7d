"""What the loop asks of accelerate and torch.distributed: processes, precision, sharded networks, whole tensors.

One process, DDP and FSDP2 run the same loop; `recipes/accelerate/` has a configuration for each. FSDP2 is PyTorch's
`fully_shard` on each network that trains (and on its average, and where the recipe says so on the teacher), with the
options that accelerate's configuration gives: accelerate itself prepares one model with all its optimizers at a time.
"""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from distill.config.recipe import TrainRecipe
from distill.methods import compiling
from distill.methods.base import Distiller
from distill.training.guard import Watchdog
from teachers.core.denoiser import Denoiser
from teachers.networks.adapters import unwrap

PATIENCE = timedelta(hours=12)  # one process may encode a data set while others wait; the watchdog finds the dead ones


class Engine:
    """The processes of one run. Use as a context: leaving it tells the others how this one ended."""

    def __init__(self, settings: TrainRecipe, folder: Path) -> None:
        self.sharding = _sharding(settings)
        # One interpreter may train several recipes in turn, each in its own precision; accelerate keeps the first.
        AcceleratorState._reset_state()
        GradientState._reset_state()
        with _without("ACCELERATE_USE_FSDP"):
            self.accelerator = Accelerator(
                cpu=not torch.cuda.is_available(),  # schedules are float64, which Apple's GPUs lack
                mixed_precision=settings.precision,
                log_with=None if settings.tracker == "none" else settings.tracker,
                project_dir=str(folder),
                kwargs_handlers=[
                    DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False),
                    InitProcessGroupKwargs(timeout=PATIENCE),
                ],  # a turn uses some networks only
            )
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.scaler = self.accelerator.scaler
        self._mixed = settings.precision != "no"
        self._compile = settings.compile
        self._channels_last = settings.channels_last
        if settings.channels_last:
            self.refuse_sharding("train.channels_last=true")
        if settings.compile != "none":
            compiling.check_compiler(self.device)
        micro = settings.batch_size // settings.accumulation
        if micro % self.world_size:
            raise ValueError(
                f"train.batch_size / train.accumulation is {micro}, which does not divide over {self.world_size} processes"
            )
        self.local_batch_size = micro // self.world_size
        self.group: Any = None  # for words between hosts, which no device has to wait for
        self._watchdog: Watchdog | None = None
        self._roots: list[FSDPModule] = []
        self._spare: Denoiser | None = None
        if self.world_size > 1:
            self.group = dist.new_group(backend="gloo", timeout=PATIENCE)
            self._watchdog = Watchdog(self.rank, self.world_size)
            dist.barrier(self.group)
            self._watchdog.start()

    @property
    def trackers(self) -> list[Any]:
        """accelerate's experiment trackers; empty on processes other than the main one."""
        return self.accelerator.trackers

    def print(self, message: str) -> None:
        """Print on the main process."""
        self.accelerator.print(message)

    def wait(self) -> None:
        """Wait until every process is here."""
        self.accelerator.wait_for_everyone()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._watchdog:
            leaving = error is None or (isinstance(error, SystemExit) and not error.code)
            self._watchdog.end(None if leaving else error)

    # --- networks -----------------------------------------------------------------------------------------------------

    def to_channels_last(self, *networks: nn.Module) -> None:
        """Put convolutions into the memory order that the recipe asks for."""
        if self._channels_last:
            for network in networks:
                network.to(memory_format=torch.channels_last)

    def prepare(self, distiller: Distiller, ema: Denoiser) -> nn.Module:
        """The callable that the loop trains: the distiller, in DDP or with its networks and `ema` sharded."""
        trained = {id(module): module for modules in distiller.networks().values() for module in modules}
        if self._compile != "none":
            for module in (distiller.teacher.denoiser, *trained.values()):
                if isinstance(module, Denoiser):
                    compiling.compile_network(unwrap(module.network), self._compile)
        if self.sharding is None:
            return self.accelerator.prepare(distiller)
        self._spare = copy.deepcopy(ema).cpu() if self.is_main else None
        for module in trained.values():
            self._roots.append(self.shard(module.network if isinstance(module, Denoiser) else module))
        self.shard(ema.network)
        return distiller

    def shard(self, network: nn.Module) -> FSDPModule:
        """Shard `network` over all processes, its blocks one by one."""
        assert self.sharding is not None
        names = self.sharding.transformer_cls_names_to_wrap or getattr(network, "_no_split_modules", None) or ()
        options = {
            "mesh": init_device_mesh(self.device.type, (self.world_size,)),
            "reshard_after_forward": self.sharding.reshard_after_forward,
            "offload_policy": self.sharding.cpu_offload,
        }
        for block in reversed(list(network.modules())):
            if block is not network and type(block).__name__ in names:
                fully_shard(block, **options)
        # The root stays whole between forward and backward (PyTorch's own default): a discriminator reads features from
        # within, and a backward that starts there would find the root's parameters away.
        return fully_shard(network, **(options | {"reshard_after_forward": False}))

    def micro_batch(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged in a step's last micro-batch only."""
        for root in self._roots:
            root.set_requires_gradient_sync(last)
        return nullcontext() if last or self._roots else self.accelerator.no_sync(model)

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision, where the recipe asks for it."""
        return self.accelerator.autocast() if self._mixed else nullcontext()

    def clip(self, optimizer: Any, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        """Have the gradients scaled down to `max_norm` at most; their norm, (), on the device."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        gradients = self._own([p.grad for p in parameters if p.grad is not None])
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if self._roots:
            squared = norm.square()
            dist.all_reduce(squared)
            norm = squared.sqrt()
        excess = ((norm.float() + 1e-6) / max_norm).clamp(min=1.0)
        fused = self.scaler is None and isinstance(optimizer, torch.optim.AdamW)
        if fused:
            optimizer.grad_scale = excess  # what the fused kernel divides by
        else:
            torch._foreach_div_(gradients, excess)
        return norm

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def update_ema(self, ema: list[nn.Parameter], student: list[nn.Parameter], decay: float) -> None:
        """average <- decay average + (1 - decay) student, each process its own part."""
        torch._foreach_lerp_(self._own(ema), self._own(student), 1 - decay)

    def _own(self, tensors: list[Any]) -> list[Tensor]:
        """What this process has of `tensors`, all of them unless they are sharded."""
        return [_local(tensor) for tensor in tensors] if self._roots else tensors

    # --- state --------------------------------------------------------------------------------------------------------

    def full_state(self, state: Any) -> Any:
        """`state` (nested dicts and lists) with whole tensors on the CPU, for the chief. Every process calls it."""
        if isinstance(state, Mapping):
            return {key: self.full_state(value) for key, value in state.items()}
        if isinstance(state, list):
            return [self.full_state(value) for value in state]
        if not isinstance(state, Tensor):
            return state
        tensor = state.full_tensor() if isinstance(state, DTensor) else state
        return tensor.detach().cpu() if self.is_main else None

    @torch.no_grad()
    def load_full_state(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Load what `full_state` returned of a module, sharded or not. Every process calls it.

        Raises:
            ValueError: Where names or shapes differ from the module's.
        """
        own = module.state_dict()
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise ValueError(f"the checkpoint does not fit {type(module).__name__}: its tensors are others")
        if self.sharding is None:
            module.load_state_dict(state)
            return
        for name, tensor in own.items():
            value = state[name].to(tensor.device)
            if isinstance(tensor, DTensor):
                value = distribute_tensor(value, tensor.device_mesh, tensor.placements)
            tensor.copy_(value)

    def restore(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Load what `full_state` gave of an optimizer, on however many processes; moments lie in memory as parameters do."""
        optimizer.load_state_dict(state)
        for parameter, entries in optimizer.state.items():
            for key, value in entries.items():
                if not isinstance(value, Tensor) or value.shape != parameter.shape:
                    continue
                if isinstance(parameter, DTensor):
                    entries[key] = distribute_tensor(value, parameter.device_mesh, parameter.placements)
                elif value.stride() != parameter.stride():
                    entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def unsharded(self, ema: Denoiser) -> Denoiser:
        """`ema` as an ordinary module, on the chief. Every process calls it."""
        if self.sharding is None:
            return ema.to(memory_format=torch.contiguous_format) if self._channels_last else ema
        state = self.full_state(ema.state_dict())
        if self._spare is not None:
            self._spare.load_state_dict(state)
        return self._spare or ema

    def refuse_sharding(self, what: str) -> None:
        """ValueError where networks are sharded and `what` cannot be."""
        if self.sharding is not None:
            raise ValueError(f"{what} runs on one process or in DDP, not in FSDP2: use recipes/accelerate/ddp.yaml")

    def check_same(self, number: int, what: str) -> None:
        """ValueError where processes disagree on `number`."""
        if self.group is not None:
            ends = torch.tensor([number, -number])
            dist.all_reduce(ends, dist.ReduceOp.MIN, group=self.group)
            if ends[0] != -ends[1]:
                raise ValueError(
                    f"the processes do not see the same {what}: output= has to be a folder all machines share"
                )


def _sharding(settings: TrainRecipe) -> FullyShardedDataParallelPlugin | None:
    """FSDP2's options from accelerate's configuration, None without; ValueError for engines that cannot run this."""
    on = {name for name in ("DEEPSPEED", "MEGATRON_LM", "FSDP") if os.environ.get(f"ACCELERATE_USE_{name}") == "true"}
    if on & {"DEEPSPEED", "MEGATRON_LM"}:
        raise ValueError(
            f"{' and '.join(sorted(on))} cannot train several networks with an optimizer each; "
            "use recipes/accelerate/fsdp2.yaml or ddp.yaml instead"
        )
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise ValueError(
            "accelerate's dynamo_config compiles what is trained as a whole, tangents too, which cannot be; "
            "take it out of the configuration and set train.compile=blocks in the recipe"
        )
    if settings.precision == "fp16" and (not torch.cuda.is_available() or "FSDP" in on):
        raise ValueError(
            "train.precision=fp16 needs a GPU and works on one process or in DDP; use train.precision=bf16 or no"
        )
    if settings.shard_teacher and "FSDP" not in on:
        raise ValueError("train.shard_teacher needs FSDP2; launch with recipes/accelerate/fsdp2.yaml, or leave it out")
    if "FSDP" not in on:
        return None
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise ValueError("FSDP version 1 wraps modules in ways that methods would see; set fsdp_version: 2")
    return FullyShardedDataParallelPlugin(fsdp_version=2)


@contextmanager
def _without(name: str) -> Iterator[None]:
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
