"""The memory plan of a run: its memory use, computed before anything is allocated.

The run's networks, losses and backward passes run on the meta device, where tensors have shapes but no data, and the
bytes of live tensors are counted (`distill.training.meta_device`). The plan therefore covers every method, option and
tier. It does not include libraries' workspaces and the allocator's fragmentation. For several processes it adds DDP's
gradient buckets, or divides what FSDP2 shards and adds the blocks that are gathered.
"""

import copy
import dataclasses
from collections.abc import Iterable

import psutil
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn

from distill.config.recipe import Recipe
from distill.config.registry import TEACHERS, find
from distill.config.sections import DTYPES
from distill.data.batch import Batch, Pairs
from distill.data.batch_random import BatchRandom
from distill.methods.base import Distiller
from distill.training.meta_device import (
    META,
    MemoryTracker,
    build_on_meta,
    patch_meta_ops,
    resident_modules,
)
from distill.training.optimizers import moment_bytes
from distill.training.sharding import gathered_bytes
from distill.training.state import build_distiller, ema_decays
from teachers.core.denoiser import Denoiser
from teachers.core.teacher import Teacher
from teachers.loading.sketch import DMD_BYTES, sketch
from teachers.networks.adapters import unwrap
from teachers.networks.quantized import quantize

LATE_STEP = 10**9  # after every warm-up
GIB = 2**30
MIN_PLANNED = GIB  # bytes of networks below which no plan is printed


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose.

    Attributes:
        weights: The teacher's network and the trained networks.
        ema: The student's EMAs.
        optimizer: Moments.
        gradients: Gradients of the phase with the largest memory use.
        activations: All other tensors that are live at the peak of that phase.
        decoder: The autoencoder and other networks that stay in memory.
        communication: DDP's gradient buckets of the other phases, or FSDP2's gathered blocks.
    """

    weights: int
    ema: int
    optimizer: int
    gradients: int
    activations: int
    decoder: int
    communication: int = 0

    @property
    def total(self) -> int:
        """The sum of all."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Processes:
    """How a run is distributed.

    Attributes:
        count: Number of processes.
        sharding: FSDP2's options; None: each process has complete networks (DDP).
    """

    count: int = 1
    sharding: FullyShardedDataParallelPlugin | None = None

    def samples(self, recipe: Recipe) -> int:
        """Samples of one micro-batch on one process; see `TrainRecipe.local_batch_size`."""
        return recipe.train.local_batch_size(self.count)


ONE_PROCESS = Processes()


def plan(recipe: Recipe, samples: int, processes: Processes = ONE_PROCESS) -> MemoryPlan:
    """The memory plan of one process. Reads configurations only, no weights.

    Args:
        recipe: A checked recipe.
        samples: Samples of one micro-batch.
        processes: How the run is distributed.
    """
    family = find(TEACHERS, recipe.teacher.family)
    source, size = family.locate(recipe.teacher.path), family.size_argument(recipe.teacher.size)
    teacher = build_on_meta(family, source, DTYPES[recipe.teacher.precision], **size)
    quantize(teacher.denoiser.network, recipe.memory.quantize)
    distiller = build_distiller(recipe, teacher, META, report=lambda _: None)
    ema = copy.deepcopy(distiller.student).requires_grad_(False)
    trained = {phase: _parameters(*modules) for phase, modules in distiller.networks().items()}
    peak, gradients = peak_phase(teacher, distiller, trained, samples, recipe.train.precision)
    others = _tensors(*resident_modules(teacher))
    network = _tensors(unwrap(teacher.denoiser.network), distiller)
    average = _tensors(ema)
    found = MemoryPlan(
        weights=_bytes(network - average - others),
        ema=len(ema_decays(recipe)) * _bytes(average),
        optimizer=sum(moment_bytes(p, recipe.memory.eight_bit) for p in set().union(*trained.values())),
        gradients=gradients,
        activations=peak - gradients,
        decoder=_bytes(others - network),
    )
    if processes.sharding is not None:
        whole = set() if recipe.train.shard_teacher else _tensors(unwrap(teacher.denoiser.network))
        frozen = _bytes(whole - set().union(*trained.values()))
        networks = [_network(m) for m in dict.fromkeys(m for modules in distiller.networks().values() for m in modules)]
        return _sharded(found, frozen, gathered_bytes(networks, processes.sharding), processes.count)
    if processes.count > 1:  # one set of buckets for each phase; gradients of the present phase are views of them
        buckets = sum(_bytes(p for p in parameters if p.requires_grad) for parameters in trained.values())
        return dataclasses.replace(found, communication=max(0, buckets - gradients))
    return found


def _sharded(plan: MemoryPlan, whole: int, gathered: int, count: int) -> MemoryPlan:
    """`plan` with everything but `whole` bytes of its weights divided among `count` processes."""
    return dataclasses.replace(
        plan,
        weights=whole + (plan.weights - whole) // count,
        ema=plan.ema // count,
        optimizer=plan.optimizer // count,
        gradients=plan.gradients // count,
        communication=gathered,
    )


def _network(module: nn.Module) -> nn.Module:
    return module.network if isinstance(module, Denoiser) else module


def peak_phase(
    teacher: Teacher, distiller: Distiller, trained: dict[str, set[nn.Parameter]], samples: int, precision: str
) -> tuple[int, int]:
    """The memory of the phase with the largest peak.

    Args:
        teacher: The teacher on the meta device.
        distiller: The method on the meta device.
        trained: The trained parameters of each phase.
        samples: Samples of one micro-batch.
        precision: The recipe's train.precision.

    Returns:
        Bytes that the phase allocates at its peak, and the part of them that are gradients.
    """
    row = dict(teacher.meta_condition())
    cond = {key: value.expand(samples, *value.shape[1:]) for key, value in row.items()}
    if teacher.guided:
        teacher.null_cache = row
    latents = torch.empty(samples, *teacher.shape, device=META)
    largest = (0, 0)
    for phase in dict.fromkeys(distiller.phases(LATE_STEP)):
        rng = BatchRandom((phase,), 0, samples, samples, META)
        batch = Batch(cond, rng, latents, lambda: Pairs(latents, latents, cond))
        known = [*distiller.parameters(), *unwrap(teacher.denoiser.network).parameters(), latents, *cond.values()]
        with MemoryTracker(known) as tracker, patch_meta_ops(precision):
            loss, _ = distiller(phase, batch, LATE_STEP)
            loss.backward()
        largest = max(largest, (tracker.peak, _bytes(p for p in trained[phase] if p.grad is not None)))
        distiller.zero_grad(set_to_none=True)
    return largest


def _parameters(*modules: nn.Module) -> set[nn.Parameter]:
    return {p for module in modules for p in module.parameters()}


def _tensors(*modules: nn.Module) -> set[Tensor]:
    """Parameters and buffers, such as tables and quantized weights."""
    return {tensor for module in modules for tensor in (*module.parameters(), *module.buffers())}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def free_bytes(device: torch.device) -> int:
    """Free memory of `device` in bytes: the GPU's, or this machine's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def plan_lines(recipe: Recipe, samples: int, device: torch.device, processes: Processes = ONE_PROCESS) -> list[str]:
    """The memory plans of both tiers as a table, and whether each fits into the free memory of `device`.

    Args:
        recipe: A checked recipe.
        samples: Samples of one micro-batch.
        device: The device whose free memory is read.
        processes: How the run is distributed.

    Returns:
        Lines of text.
    """
    free = free_bytes(device)
    names = [field.name for field in dataclasses.fields(MemoryPlan)]
    tiers = ("full", "lora") if processes.sharding is None else (recipe.memory.tier,)  # LoRA cannot be sharded
    plans = {tier: plan(in_tier(recipe, tier), samples, processes) for tier in tiers}
    each = f", each of {processes.count} processes" if processes.count > 1 else ""
    out = [
        f"memory plan in GiB{each}, {samples} sample{'s' * (samples > 1)} at a time; {free / GIB:.1f} free on "
        f"{device.type}",
        "  ".join([f"{'tier':<8}", *(f"{name:>11}" for name in names), f"{'total':>8}"]),
    ]
    for tier, entry in plans.items():
        cells = [f"{size / GIB:>11.2f}" for size in dataclasses.astuple(entry)]
        own = " (this run)" if tier == recipe.memory.tier else ""
        result = "fits" if entry.total <= free else "does not fit"
        out.append("  ".join([f"{tier:<8}", *cells, f"{entry.total / GIB:>8.2f}", f"{result}{own}"]))
    if plans[recipe.memory.tier].total > free:
        out.append(f"this run may not fit: {advice(recipe, samples, free, plans.get('lora'), processes)}")
    return out


def fits(recipe: Recipe, samples: int, device: torch.device, processes: Processes = ONE_PROCESS) -> bool:
    """Whether the plan of `recipe` fits into the free memory of `device`; see `plan_lines`."""
    return plan(recipe, samples, processes).total <= free_bytes(device)


def advice(recipe: Recipe, samples: int, free: int, lora: MemoryPlan | None, processes: Processes = ONE_PROCESS) -> str:
    """Settings that reduce memory use, in the order in which they should be tried.

    Args:
        recipe: A checked recipe.
        samples: Samples of one micro-batch.
        free: Free memory in bytes.
        lora: The plan with LoRA adapters; None if they cannot be used.
        processes: How the run is distributed.
    """
    settings = [] if recipe.memory.activation_checkpointing else ["memory.checkpointing=true"]
    if samples > 1:
        settings.append("a larger train.accumulation")
    lora_fits = lora is not None and lora.total <= free
    if recipe.memory.tier == "full":
        settings.append(f"memory.tier=lora{' (fits)' if lora_fits else ''}")
    if lora is not None and not lora_fits and recipe.memory.quantize == "none":
        smaller = in_tier(recipe, "lora")
        smaller = dataclasses.replace(smaller, memory=dataclasses.replace(smaller.memory, quantize="nf4"))
        enough = plan(smaller, samples, processes).total <= free
        settings.append(f"memory.quantize=nf4 with LoRA adapters{' (fits)' if enough else ''}")
    return "try " + ", ".join(settings) if settings else "a smaller teacher or a larger GPU is needed"


def in_tier(recipe: Recipe, tier: str) -> Recipe:
    """`recipe` with another memory tier and, if the tier changes, the tier's default teacher precision.

    The tier "full" has no quantized weights.
    """
    if tier == recipe.memory.tier:
        return recipe
    form = "none" if tier == "full" else recipe.memory.quantize
    memory = dataclasses.replace(recipe.memory, tier=tier, quantize=form)  # type: ignore[arg-type]
    teacher = dataclasses.replace(recipe.teacher, precision="auto")
    return dataclasses.replace(recipe, memory=memory, teacher=teacher)


def print_plan(recipe: Recipe, processes: Processes, device: torch.device) -> None:
    """Print the memory plan of a run, unless its networks are small. If the plan fails, print why and continue.

    Args:
        recipe: A checked recipe.
        processes: How the run is distributed.
        device: The device of the run.
    """
    try:
        family = find(TEACHERS, recipe.teacher.family)
        path = family.locate(recipe.teacher.path)
        trained = sketch(path, family).denoiser.parameters()
        if DMD_BYTES * sum(p.numel() for p in trained) >= MIN_PLANNED:
            print("\n".join(plan_lines(recipe, processes.samples(recipe), device, processes)))
    except Exception as error:
        print(f"the memory plan of this run failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
