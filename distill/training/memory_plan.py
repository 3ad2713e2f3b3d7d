"""The memory plan of a run: what it will hold, counted before any of it is allocated.

The run's own networks, losses and backward passes run on the meta device, where tensors have shapes but no contents,
and live bytes are counted there (`distill.training.meta_device`). The plan therefore covers every method, option and
tier. It leaves out the libraries' scratch space and the allocator's fragmentation.
"""

import copy
import dataclasses
from collections.abc import Iterable

import psutil
import torch
from torch import nn

from distill.config.recipe import DTYPES, Recipe
from distill.config.registry import TEACHERS, find
from distill.data.batch import Batch, Pairs
from distill.data.batch_random import BatchRandom
from distill.methods.base import Distiller
from distill.training.meta_device import META, MemoryTracker, build_on_meta, configured, modules_beside, patch_meta_ops
from distill.training.optimizers import moments
from distill.training.state import build_distiller
from teachers.core.teacher import Teacher
from teachers.loading.sketch import DMD_BYTES, sketch
from teachers.networks.adapters import unwrap

LATE = 10**9  # a step at which every warm-up is over
GIB = 2**30
SMALL = GIB  # bytes; runs whose networks take less are not planned


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes, by what they are for."""

    weights: int  # of the teacher's network and of those that train
    ema: int  # of the student
    optimizer: int
    gradients: int  # in the fullest turn
    activations: int  # and whatever else is alive at its fullest moment
    beside: int  # the autoencoder

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def plan(recipe: Recipe, samples: int) -> Plan:
    """What `recipe` takes on one process that works on `samples` samples at a time. Reads configurations only."""
    family = find(TEACHERS, recipe.teacher.family)
    teacher = build_on_meta(family, family.locate(recipe.teacher.path), DTYPES[recipe.teacher.precision])
    distiller = build_distiller(recipe, teacher, META, note=lambda _: None)
    ema = copy.deepcopy(distiller.student).requires_grad_(False)
    trained = {phase: _parameters(*modules) for phase, modules in distiller.networks().items()}
    peak, gradients = fullest_phase(teacher, distiller, trained, samples, recipe.train.precision)
    others = _parameters(*modules_beside(teacher))
    network = _parameters(unwrap(teacher.denoiser.network), distiller)
    averaged = _parameters(ema)
    return Plan(
        weights=_bytes(network - averaged - others),
        ema=_bytes(averaged),
        optimizer=sum(moments(p, recipe.memory.eight_bit) for p in set().union(*trained.values())),
        gradients=gradients,
        activations=peak - gradients,
        beside=_bytes(others - network),
    )


def fullest_phase(
    teacher: Teacher, distiller: Distiller, trained: dict[str, set[nn.Parameter]], samples: int, precision: str
) -> tuple[int, int]:
    """Bytes that the fullest turn adds to what is always there, at its fullest moment, and its gradients' share."""
    cond = {key: value.expand(samples, *value.shape[1:]) for key, value in teacher.condition([""]).items()}
    if teacher.guided:
        teacher.null_condition(cond)  # kept by the teacher from here on
    latents = torch.empty(samples, *teacher.shape, device=META)
    fullest = (0, 0)
    for phase in dict.fromkeys(distiller.phases(LATE)):
        rng = BatchRandom((phase,), 0, samples, samples, META)
        batch = Batch(cond, rng, latents, lambda: Pairs(latents, latents, cond))
        known = [*distiller.parameters(), *unwrap(teacher.denoiser.network).parameters(), latents, *cond.values()]
        with MemoryTracker(known) as live, patch_meta_ops(precision):
            loss, _ = distiller(phase, batch, LATE)
            loss.backward()
        fullest = max(fullest, (live.peak, _bytes(p for p in trained[phase] if p.grad is not None)))
        distiller.zero_grad(set_to_none=True)
    return fullest


def _parameters(*modules: nn.Module) -> set[nn.Parameter]:
    return {p for module in modules for p in module.parameters()}


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.nbytes for p in parameters)


def free_bytes(device: torch.device) -> int:
    """Memory that is free now: the card's, or this machine's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def plan_lines(recipe: Recipe, samples: int, device: torch.device) -> list[str]:
    """The plan of both tiers as a table, and which of them the memory holds that is free on `device`."""
    free = free_bytes(device)
    names = [field.name for field in dataclasses.fields(Plan)]
    found = {tier: plan(in_tier(recipe, tier), samples) for tier in ("full", "lora")}
    out = [
        f"memory plan in GiB, {samples} sample{'s' * (samples > 1)} at a time; {free / GIB:.1f} free on {device.type}",
        "  ".join([f"{'tier':<8}", *(f"{name:>11}" for name in names), f"{'total':>8}"]),
    ]
    for tier, entry in found.items():
        cells = [f"{size / GIB:>11.2f}" for size in dataclasses.astuple(entry)]
        mark = " (this run)" if tier == recipe.memory.tier else ""
        verdict = "fits" if entry.total <= free else "does not fit"
        out.append("  ".join([f"{tier:<8}", *cells, f"{entry.total / GIB:>8.2f}", f"{verdict}{mark}"]))
    if found[recipe.memory.tier].total > free:
        out.append(f"this run may not fit: {advice(recipe, samples, found['lora'].total <= free)}")
    return out


def fits(recipe: Recipe, samples: int, device: torch.device) -> bool:
    """Whether the plan of `recipe` is within the memory that is free on `device` now."""
    return plan(recipe, samples).total <= free_bytes(device)


def advice(recipe: Recipe, samples: int, lora_fits: bool) -> str:
    """What to change, the least first."""
    ways = [] if recipe.memory.activation_checkpointing else ["memory.checkpointing=true"]
    if samples > 1:
        ways.append("a larger train.accumulation")
    if recipe.memory.tier == "full":
        ways.append(f"memory.tier=lora{' (fits)' if lora_fits else ''}")
    return "try " + ", ".join(ways) if ways else "a smaller teacher or a larger card is needed"


def in_tier(recipe: Recipe, tier: str) -> Recipe:
    """`recipe` in that tier, its teacher in the tier's own precision unless it is in this one."""
    if tier == recipe.memory.tier:
        return recipe
    memory = dataclasses.replace(recipe.memory, tier=tier)  # type: ignore[arg-type]
    teacher = dataclasses.replace(recipe.teacher, precision="auto")
    return dataclasses.replace(recipe, memory=memory, teacher=teacher)


def print_plan(recipe: Recipe, world: int, device: torch.device) -> None:
    """Print the plan, unless the run is small. It is advice: where it cannot be made, the run goes on without it."""
    try:
        family = find(TEACHERS, recipe.teacher.family)
        path = family.locate(recipe.teacher.path)
        trained = sketch(configured(path), family).denoiser.parameters()
        if DMD_BYTES * sum(p.numel() for p in trained) >= SMALL:
            samples = recipe.train.batch_size // recipe.train.accumulation // world
            print("\n".join(plan_lines(recipe, max(1, samples), device)))
    except Exception as error:
        print(f"no memory plan for this run ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
