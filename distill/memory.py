"""What a run will hold in memory, counted before any of it is allocated.

    python -m distill.memory recipes/sdxl_dmd2_lora.yaml [key=value ...]

The run's own networks, losses and backward passes run on the meta device, where tensors have shapes and no contents,
and what is alive there at once is counted as it comes and goes (`distill.training.meta_device`). So the plan knows of every method,
option and tier what the code itself does. What it lacks beside the real thing is the libraries' scratch space and the
gaps that allocators leave.
"""

import copy
import dataclasses
from collections.abc import Iterable

import psutil
import torch
from torch import nn

from distill.config.recipe import DTYPES, Recipe, asked, options
from distill.config.registry import TEACHERS, find
from distill.data.draws import Draws
from distill.methods.base import Batch, Distiller, Pairs
from distill.training.meta_device import META, Live, configured, modules_beside, on_paper, stand_ins
from distill.training.optimizers import moments
from teachers.core.teacher import Teacher
from teachers.describe import DMD, sketch
from teachers.networks.adapters import body
from teachers.networks.checkpointing import checkpoint_activations
from teachers.support.errors import speak

LATE = 10**9  # a step at which every warm-up is over
GIB = 2**30
SMALL = GIB  # bytes; runs whose networks take less are not planned


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes, by what they are for."""

    weights: int  # of the teacher's network and of those that train
    average: int  # of the student
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
    teacher = on_paper(family, family.locate(recipe.teacher.path), DTYPES[recipe.teacher.precision])
    cls, method = options(recipe)
    if recipe.memory.tier == "shared":
        teacher.share(recipe.memory.rank)
    if recipe.memory.keeps_few:
        checkpoint_activations(teacher.denoiser.network, recipe.memory.checkpointing)
    distiller: Distiller = cls(teacher, recipe.teacher.guidance, method).to(META)
    average = copy.deepcopy(distiller.student).requires_grad_(False)
    trained = {turn: _parameters(*modules) for turn, modules in distiller.networks().items()}
    peak, gradients = fullest_turn(teacher, distiller, trained, samples, recipe.train.precision)
    others = _parameters(*modules_beside(teacher))
    network = _parameters(body(teacher.denoiser.network), distiller)
    averaged = _parameters(average)
    return Plan(
        weights=_bytes(network - averaged - others),
        average=_bytes(averaged),
        optimizer=sum(moments(p, recipe.memory.eight_bit) for p in set().union(*trained.values())),
        gradients=gradients,
        activations=peak - gradients,
        beside=_bytes(others - network),
    )


def fullest_turn(
    teacher: Teacher, distiller: Distiller, trained: dict[str, set[nn.Parameter]], samples: int, precision: str
) -> tuple[int, int]:
    """Bytes that the fullest turn adds to what is always there, at its fullest moment, and its gradients' share."""
    cond = {key: value.expand(samples, *value.shape[1:]) for key, value in teacher.condition([""]).items()}
    if teacher.guided:
        teacher.unconditional(cond)  # kept by the teacher from here on
    latents = torch.empty(samples, *teacher.shape, device=META)
    fullest = (0, 0)
    for turn in dict.fromkeys(distiller.turns(LATE)):
        draws = Draws((turn,), 0, samples, samples, META)
        batch = Batch(cond, draws, latents, lambda: Pairs(latents, latents, cond))
        known = [*distiller.parameters(), *body(teacher.denoiser.network).parameters(), latents, *cond.values()]
        with Live(known) as live, stand_ins(precision):
            loss, _ = distiller(turn, batch, LATE)
            loss.backward()
        fullest = max(fullest, (live.peak, _bytes(p for p in trained[turn] if p.grad is not None)))
        distiller.zero_grad(set_to_none=True)
    return fullest


def _parameters(*modules: nn.Module) -> set[nn.Parameter]:
    return {p for module in modules for p in module.parameters()}


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.nbytes for p in parameters)


def free_bytes(device: torch.device) -> int:
    """Memory that is free now: the card's, or this machine's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def lines(recipe: Recipe, samples: int, device: torch.device) -> list[str]:
    """The plan of both tiers as a table, and which of them the memory holds that is free on `device`."""
    free = free_bytes(device)
    names = [field.name for field in dataclasses.fields(Plan)]
    found = {tier: plan(in_tier(recipe, tier), samples) for tier in ("full", "shared")}
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
        out.append(f"this run may not fit: {advice(recipe, samples, found['shared'].total <= free)}")
    return out


def advice(recipe: Recipe, samples: int, shared_fits: bool) -> str:
    """What to change, the least first."""
    ways = [] if recipe.memory.keeps_few else ["memory.checkpointing=true"]
    if samples > 1:
        ways.append("a larger train.accumulation")
    if recipe.memory.tier == "full":
        ways.append(f"memory.tier=shared{' (fits)' if shared_fits else ''}")
    return "try " + ", ".join(ways) if ways else "a smaller teacher or a larger card is needed"


def in_tier(recipe: Recipe, tier: str) -> Recipe:
    """`recipe` in that tier, its teacher in the tier's own precision unless it is in this one."""
    if tier == recipe.memory.tier:
        return recipe
    memory = dataclasses.replace(recipe.memory, tier=tier)  # type: ignore[arg-type]
    teacher = dataclasses.replace(recipe.teacher, precision="auto")
    return dataclasses.replace(recipe, memory=memory, teacher=teacher)


def announce(recipe: Recipe, world: int, device: torch.device) -> None:
    """Print the plan, unless the run is small. It is advice: where it cannot be made, the run goes on without it."""
    try:
        family = find(TEACHERS, recipe.teacher.family)
        path = family.locate(recipe.teacher.path)
        trained = sketch(configured(path), family).denoiser.parameters()
        if DMD * sum(p.numel() for p in trained) >= SMALL:
            samples = recipe.train.batch_size // recipe.train.accumulation // world
            print("\n".join(lines(recipe, max(1, samples), device)))
    except Exception as error:
        print(f"no memory plan for this run ({type(error).__name__}: {' '.join(str(error).split())[:200]})")


def command() -> None:
    recipe = asked(__doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print("\n".join(lines(recipe, recipe.train.batch_size // recipe.train.accumulation, device)))


if __name__ == "__main__":
    speak(command)
