"""The engine: processes, devices, precision and sharding, on top of accelerate and torch.distributed.

One process, DDP and FSDP2 run the same loop; `recipes/accelerate/` has a configuration for each. FSDP2 is PyTorch's
`fully_shard`, applied to each trained network, to the EMA, and if the recipe says so to the teacher, with the options
of accelerate's configuration. It is called directly because accelerate prepares one model with all its optimizers.
"""

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from distill.config.sections import TrainRecipe
from distill.data.batch import Batch
from distill.methods import compiling
from distill.methods.base import Distiller, Logs
from distill.methods.contract import check_loss
from distill.training.environment import check_environment, without_accelerate_variables
from distill.training.full_state import full_state
from distill.training.sharding import local_shard, shard, sharding_options
from distill.training.watchdog import Watchdog
from teachers.core.denoiser import Denoiser
from teachers.networks.adapters import unwrap
from teachers.support.private_api import reset_accelerate

# Timeout of collective operations: one process may encode a dataset while others wait. The watchdog detects processes
# that do not respond.
COLLECTIVE_TIMEOUT = timedelta(hours=12)


class Phase(nn.Module):
    """One phase of a method, as the module that is wrapped for distributed training.

    Its parameters are those that the phase trains, so that processes exchange no other gradients.

    Args:
        distiller: The method. It is not a submodule.
        name: The phase.
    """

    def __init__(self, distiller: Distiller, name: str) -> None:
        super().__init__()
        self.trained = nn.ModuleList(distiller.networks()[name])
        self._loss = partial(distiller, name)
        self._check = partial(check_loss, distiller, name)

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        """The loss of one micro-batch and the values to log; see `Distiller.forward`."""
        return self._check(self._loss(batch, step))


class Engine:
    """The processes of one run, their device, precision and synchronisation. Use it as a context manager.

    Args:
        settings: The recipe's `train` section.
        folder: The run's folder; trackers write into it.

    Attributes:
        accelerator: accelerate's Accelerator.
        device: The device of this process.
        is_main: Whether this process prints, writes files and exports.
        rank, world_size: Index of this process and number of processes.
        local_batch_size: Samples of one micro-batch on this process.
        scaler: The gradient scaler with train.precision=fp16, else None.
        sharding: FSDP2's options, or None if networks are not sharded.
        group: A gloo process group for small CPU tensors; None for one process.

    Raises:
        ValueError: If accelerate's configuration, the batch size or the machine does not fit the recipe.
    """

    def __init__(self, settings: TrainRecipe, folder: Path) -> None:
        notes = check_environment(settings)
        self.sharding = sharding_options(settings)
        reset_accelerate()  # accelerate keeps the first precision, but one process may train several recipes
        with without_accelerate_variables():
            self.accelerator = Accelerator(
                cpu=not torch.cuda.is_available(),  # schedules are float64, which Apple's GPUs lack
                mixed_precision=settings.precision,
                log_with=None if settings.tracker == "none" else settings.tracker,
                project_dir=str(folder),
                kwargs_handlers=[
                    DistributedDataParallelKwargs(
                        find_unused_parameters=True,  # a loss may not depend on every parameter of its networks
                        broadcast_buffers=False,
                        gradient_as_bucket_view=True,
                    ),
                    InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT),
                ],
            )
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        for note in notes:
            self.accelerator.print(note)
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.scaler = self.accelerator.scaler
        self._mixed = settings.precision != "no"
        self._compile = settings.compile
        self._channels_last = settings.channels_last
        if settings.channels_last:
            self.refuse_sharding("train.channels_last=true")
        if self.sharding is not None and not dist.is_initialized():
            raise ValueError(
                "FSDP2 (ACCELERATE_USE_FSDP in the environment) needs processes that a launcher starts together: use "
                "fewstep train --config fsdp2, or unset the variable"
            )
        if settings.compile != "none":
            compiling.check_compiler(self.device)
        self.local_batch_size = settings.local_batch_size(self.world_size)
        self.group: Any = None  # gloo, so that no device has to be synchronised
        self._watchdog: Watchdog | None = None
        self._roots: list[FSDPModule] = []
        self._unsharded_ema: Denoiser | None = None
        if self.world_size > 1:
            self.group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
            if not Watchdog.watching:  # a launcher without variables that `watched` knows, such as mpirun
                self._watchdog = Watchdog(self.rank, self.world_size)
                self._watchdog.start()

    @property
    def trackers(self) -> list[Any]:
        """accelerate's experiment trackers; empty on processes other than the main one."""
        return self.accelerator.trackers

    def print(self, message: str) -> None:
        """Print `message` on the main process."""
        self.accelerator.print(message)

    def wait(self) -> None:
        """Wait until every process has called this method."""
        self.accelerator.wait_for_everyone()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._watchdog:
            self._watchdog.stop(finished=error is None or (isinstance(error, SystemExit)))

    # --- networks -----------------------------------------------------------------------------------------------------

    def to_channels_last(self, *networks: nn.Module) -> None:
        """Convert `networks` to channels-last memory format if train.channels_last is true."""
        if self._channels_last:
            for network in networks:
                network.to(memory_format=torch.channels_last)

    def prepare(self, distiller: Distiller, ema: Denoiser) -> dict[str, nn.Module]:
        """Compile and distribute the networks.

        Args:
            distiller: The method; its networks are compiled and sharded in place as the recipe says.
            ema: The student's EMA, sharded in place.

        Returns:
            The module that the loop calls for each phase: a `Phase`, wrapped by DDP if there are several unsharded
            processes.
        """
        phases = {name: Phase(distiller, name) for name in distiller.networks()}
        trained = {id(module): module for modules in distiller.networks().values() for module in modules}
        averages = [network for network, _ in distiller.averages() if id(network) not in trained]
        if self._compile != "none":
            for module in (distiller.teacher.denoiser, *trained.values(), *averages):
                if isinstance(module, Denoiser):
                    compiling.compile_network(unwrap(module.network), self._compile)
        if self.sharding is None:
            return {name: self.accelerator.prepare(phase) for name, phase in phases.items()}
        self._unsharded_ema = copy.deepcopy(ema).cpu() if self.is_main else None
        for module in trained.values():
            self._roots.append(self.shard(module.network if isinstance(module, Denoiser) else module))
        for average in (ema, *averages):
            self.shard(average.network)
        return dict(phases)

    def shard(self, network: nn.Module) -> FSDPModule:
        """Shard `network` over all processes: each of its blocks, then the rest."""
        assert self.sharding is not None
        return shard(network, self.sharding, init_device_mesh(self.device.type, (self.world_size,)))

    def micro_batch(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """The context of one micro-batch: gradients are synchronised in the last micro-batch of a phase only."""
        for root in self._roots:
            root.set_requires_gradient_sync(last)
        return nullcontext() if last or self._roots else self.accelerator.no_sync(model)

    def autocast(self) -> AbstractContextManager[Any]:
        """The autocast context of train.precision."""
        return self.accelerator.autocast() if self._mixed else nullcontext()

    def clip(self, optimizer: Any, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        """Clip the norm of the gradients.

        The fused AdamW divides by the clipping factor itself; for other optimizers the gradients are changed in place.

        Args:
            optimizer: The optimizer of `parameters`.
            parameters: The parameters of one phase.
            max_norm: The largest norm.

        Returns:
            The norm before clipping, a scalar on the device.
        """
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        gradients = self._local([p.grad for p in parameters if p.grad is not None])
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if self._roots:
            squared = norm.square()
            dist.all_reduce(squared)
            norm = squared.sqrt()
        excess = ((norm.float() + 1e-6) / max_norm).clamp(min=1.0)
        fused = self.scaler is None and isinstance(optimizer, torch.optim.AdamW)
        if fused:
            optimizer.grad_scale = excess  # the fused kernel divides the gradients by this
        else:
            torch._foreach_div_(gradients, excess)
        return norm

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """One optimizer step; the gradients are then set to None."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def update_ema(self, ema: list[nn.Parameter], student: list[nn.Parameter], decay: float) -> None:
        """ema <- decay ema + (1 - decay) student, in place; each process updates its own shards."""
        torch._foreach_lerp_(self._local(ema), self._local(student), 1 - decay)

    def discard_gathered(self, denoisers: Iterable[Denoiser]) -> None:
        """Discard gathered copies of weights that were changed: FSDP2 keeps a root's after a pass without gradients."""
        for denoiser in denoisers:
            if isinstance(denoiser.network, FSDPModule):
                denoiser.network.reshard()

    def _local(self, tensors: list[Any]) -> list[Tensor]:
        """The local shards of `tensors`, or `tensors` if networks are not sharded."""
        return [local_shard(tensor) for tensor in tensors] if self._roots else tensors

    # --- state --------------------------------------------------------------------------------------------------------

    def unsharded(self, ema: Denoiser) -> Denoiser:
        """`ema` as an unsharded module; complete on the main process only. Every process calls it."""
        if self.sharding is None:
            return ema.to(memory_format=torch.contiguous_format) if self._channels_last else ema
        state = full_state(ema.state_dict(), self.is_main)
        if self._unsharded_ema is not None:
            self._unsharded_ema.load_state_dict(state)
        return self._unsharded_ema or ema

    def refuse_sharding(self, setting: str) -> None:
        """Raise ValueError if networks are sharded, because `setting` cannot be combined with FSDP2."""
        if self.sharding is not None:
            raise ValueError(f"{setting} cannot be combined with FSDP2: use recipes/accelerate/ddp.yaml")

    def from_main(self, value: Any) -> Any:
        """`value` of the main process, on every process. Every process calls it."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group, device=torch.device("cpu"))
        return values[0]

    def check_same(self, number: int, what: str) -> None:
        """Raise ValueError if `number`, which is derived from files, differs between processes."""
        if self.group is not None:
            ends = torch.tensor([number, -number])
            dist.all_reduce(ends, dist.ReduceOp.MIN, group=self.group)
            if ends[0] != -ends[1]:
                raise ValueError(
                    f"the processes do not see the same {what}: output must be a folder that all machines share"
                )
