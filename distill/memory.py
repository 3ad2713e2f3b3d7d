"""What a run will hold in memory, counted before any of it is allocated.

The run's own networks, losses and backward passes run on the meta device, where tensors have shapes and no contents,
and what is alive there at once is counted as it comes and goes (`Live`). So the plan knows of every method, option and
tier what the code itself does. What it lacks beside the real thing is the libraries' scratch space and the gaps that
allocators leave.
"""

import copy
import dataclasses
import weakref
from collections.abc import Iterable
from typing import Any

import psutil
import torch
import torch.nn.functional as F
import transformers
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from distill.distiller import Batch, Distiller, Pairs
from distill.draws import Draws
from distill.recipe import DTYPES, Recipe, options
from distill.registry import TEACHERS, find
from teachers.adapters import body, checkpoint_activations
from teachers.describe import sketch
from teachers.source import configuration
from teachers.teacher import Teacher

META = torch.device("meta")
MOMENTS = 8  # bytes a trained number: Adam's two moments in float32
LATE = 10**9  # a step at which every warm-up is over
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes, by what they are for."""

    weights: int  # of the teacher's network and of those that train
    average: int  # of the student
    optimizer: int
    gradients: int  # in the fullest turn
    activations: int  # and whatever else is alive at its fullest moment
    beside: int  # autoencoder and text encoders

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
    if recipe.memory.checkpointing:
        checkpoint_activations(teacher.denoiser.network)
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
        optimizer=MOMENTS * sum(p.numel() for p in set().union(*trained.values())),
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
        with Live(known) as live, _StandIns(precision):
            loss, _ = distiller(turn, batch, LATE)
            loss.backward()
        fullest = max(fullest, (live.peak, _bytes(p for p in trained[turn] if p.grad is not None)))
        distiller.zero_grad(set_to_none=True)
    return fullest


class Live(TorchDispatchMode):
    """Counts the bytes of meta tensors that are alive at once, but for those `known` from before."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: Any = WeakIdKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device == META:
                storage = leaf.untyped_storage()
                if storage not in self._seen:
                    self._seen[storage] = None
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, size: int) -> None:
        self.now -= size


class _FusedAttention(torch.autograd.Function):
    """What a fused kernel keeps: its inputs, its output and one number a row. Shapes only."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


class _StandIns(TorchFunctionMode):
    """What the meta device lacks: fused attention, and autocast's half precision in matrix products."""

    products = (F.linear, F.conv2d, torch.bmm, torch.matmul, torch.baddbmm)
    wide = (F.group_norm, F.layer_norm, torch.softmax, F.softmax)

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.half and function in (*self.products, *self.wide, F.scaled_dot_product_attention):
            kind = torch.float32 if function in self.wide else self.half
            args = tuple(x.to(kind) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)
        if function is F.scaled_dot_product_attention and args[0].device == META:
            return _FusedAttention.apply(*args[:3])  # type: ignore[no-untyped-call]
        return function(*args, **kwargs)


# --- the teacher, on paper --------------------------------------------------------------------------------------------


def on_paper(family: type[Teacher], path: str, dtype: torch.dtype) -> Teacher:
    """The teacher at `path` on the meta device, text encoders too, so that it says what its condition looks like."""
    source = path if not path.endswith(".safetensors") else str(configuration(path))
    teacher = sketch(source, family)
    parts: dict[str, Any] = {}
    for name, value in DiffusionPipeline.load_config(source).items():
        if isinstance(value, list) and value[0] == "transformers" and name.startswith(("text_encoder", "tokenizer")):
            kind: Any = getattr(transformers, value[1])
            if name.startswith("tokenizer"):
                parts[name] = kind.from_pretrained(source, subfolder=name)
                continue
            config = kind.config_class.from_pretrained(source, subfolder=name)
            with META:
                parts[name] = kind(config).requires_grad_(False).eval()
    if parts:
        stock: Any = teacher.stock  # type: ignore[attr-defined]  # every family with text encoders has one
        stock.register_modules(**parts)
    for module in (teacher.denoiser, *modules_beside(teacher)):
        module.to(dtype)
    return teacher


def modules_beside(teacher: Teacher) -> list[nn.Module]:
    """The networks of the teacher's pipeline that do not denoise."""
    stock = vars(teacher).get("stock")
    parts = [part for part in stock.components.values() if isinstance(part, nn.Module)] if stock else []
    return [part for part in parts if part is not body(teacher.denoiser.network)]


def _parameters(*modules: nn.Module) -> set[nn.Parameter]:
    return {p for module in modules for p in module.parameters()}


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.nbytes for p in parameters)


# --- what is printed --------------------------------------------------------------------------------------------------


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
    ways = [] if recipe.memory.checkpointing else ["memory.checkpointing=true"]
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
    """Print the plan. It is advice: where it cannot be made, the run goes on without it."""
    samples = recipe.train.batch_size // recipe.train.accumulation // world
    try:
        print("\n".join(lines(recipe, max(1, samples), device)))
    except Exception as error:
        print(f"no memory plan for this run ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
