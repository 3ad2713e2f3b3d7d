"""The typed schema of a recipe: one YAML file a run, merged with key=value arguments, checked before weights load."""

import argparse
import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.config.registry import DISTILLERS, TEACHERS, find
from distill.config.typed import build
from eval.features.extractors import NAMES
from teachers.loading.prompts import read_prompts
from teachers.loading.registry import family_of, locate
from teachers.support.errors import suggest

SAVED = "recipe.yaml"  # in a run's folder
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # of teacher.precision


@dataclass
class TeacherRecipe:
    path: str  # a pipeline folder, a hub id, a .safetensors file, or "pocket"
    family: str = "auto"  # an installed teacher family; auto: the one that takes the pipeline at `path`
    guidance: float = 1.0  # classifier-free guidance baked into the student; 1.0 means none
    num_steps: int = 50  # the teacher's usual number of steps, which the report compares with
    sigma_data: float = 1.0  # standard deviation of the native latents or pixels
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: float32, bfloat16 in the shared tier


@dataclass
class DataRecipe:
    prompts: str | None = None  # "pocket", a text file with one prompt a line, or a .jsonl, .csv, .tsv or .parquet
    images: str | None = None  # "pocket", a folder of images with captions, .parquet or .tar files, a hub's data set
    column: str | None = None  # which column holds the words; None: text, prompt or caption
    streaming: bool = False  # read .parquet, .tar or the hub once from front to back, and copy nothing
    limit: int = 0  # take the first so many rows; 0 means all


@dataclass
class OptimizerRecipe:
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup: int = 0  # steps of linear warm-up
    schedule: Literal["constant", "cosine"] = "constant"  # cosine falls to zero at the last step


@dataclass
class TrainRecipe:
    steps: int = 1000
    batch_size: int = 64  # of one optimizer step, all processes and micro-batches together
    accumulation: int = 1  # micro-batches a step, on each process
    max_norm: float = 1.0  # gradient clipping
    ema: float = 0.99
    precision: Literal["no", "bf16", "fp16"] = "no"  # accelerate's mixed precision
    compile: Literal["none", "blocks", "networks"] = "none"  # torch.compile: repeated blocks, or whole networks
    channels_last: bool = False  # convolutions' memory in NHWC order
    checkpoint_every: int = 200
    keep_checkpoints: int = 2  # the newest so many
    keep_every: int = 0  # and for good those whose step this divides; 0 keeps none of them
    on_failed_save: Literal["continue", "stop"] = "continue"  # a full disk: the last checkpoint is kept either way
    shard_teacher: bool = False  # FSDP2 only: the frozen teacher in parts too, not whole on every process
    log_every: int = 20
    evaluate_every: int = (
        200  # held-out Frechet distance to the teacher's samples, and a grid of samples; 0 means never
    )
    evaluate_samples: int = 500
    evaluate_teacher_steps: int = 50  # steps of the teacher that the held-out distance compares with
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"


@dataclass
class MemoryRecipe:
    tier: Literal["full", "shared"] = "full"  # whole networks, or LoRA adapters on the one network of the teacher
    rank: int = 64  # of the adapters
    checkpointing: bool | None = None  # keep few activations, compute the others again in backward; null: if shared
    eight_bit: bool = False  # AdamW's moments in 8 bits (bitsandbytes)
    offload_teacher: bool = False  # tier full: the frozen teacher in host memory, on the card for its calls only

    @property
    def keeps_few(self) -> bool:
        """Whether activations are checkpointed: as asked, by default where memory is what the tier is for."""
        return self.tier == "shared" if self.checkpointing is None else self.checkpointing


@dataclass
class EvaluationRecipe:
    features: str = "auto"  # "pocket", "inception", "pixels"; auto: "pocket" for the pocket teacher, else "pixels"
    prompts: str | None = None  # as data.prompts; None means the training prompts
    reference: str | None = (
        None  # real statistics: "pocket", an .npz, a folder of images; None means the teacher's samples
    )


@dataclass
class Recipe:
    name: str
    teacher: TeacherRecipe
    method: dict[str, Any]  # name, and the options of that method
    output: str = "runs"  # the run's folder is output/name
    seed: int = 0
    data: DataRecipe = field(default_factory=DataRecipe)
    optimizers: dict[str, OptimizerRecipe] = field(default_factory=dict)  # one a turn of the method
    train: TrainRecipe = field(default_factory=TrainRecipe)
    memory: MemoryRecipe = field(default_factory=MemoryRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)

    def __post_init__(self) -> None:
        if self.teacher.precision == "auto":
            half = self.memory.tier == "shared"
            self.teacher = dataclasses.replace(self.teacher, precision="bfloat16" if half else "float32")

    @property
    def folder(self) -> Path:
        return Path(self.output) / self.name

    @property
    def cache(self) -> Path:
        """Where encoded prompts and images lie, for all runs of one output folder."""
        return Path(self.output) / ".cache"


def load(path: str | Path, overrides: typing.Sequence[str] = ()) -> Recipe:
    """The recipe at `path`, `key=value` overrides merged in and every value checked. ValueError names the culprit."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no recipe {path}{_neighbours(path)}")
    try:
        stored = OmegaConf.load(path)
        if not OmegaConf.is_dict(stored):
            raise ValueError(f"{path} has to hold keys and values at its top level")
        merged = OmegaConf.merge(stored, OmegaConf.from_dotlist(list(_checked(overrides))))
        values = OmegaConf.to_container(merged, resolve=False)
    except TypeError as error:
        raise ValueError(
            f"{' '.join(overrides)} puts a list where {path} has a group of keys, or the reverse"
        ) from error
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from error
    recipe = build(Recipe, values, "")
    if recipe.teacher.family == "auto":
        recipe.teacher.family = family_of(locate(recipe.teacher.path))
    _check_meaning(recipe)
    return recipe


def asked(doc: str | None) -> Recipe:
    """The recipe of a command line `RECIPE [key=value ...]`, whose help begins with `doc`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a YAML recipe, see recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key, for example train.steps=500")
    args = parser.parse_args()
    return load(args.recipe, args.overrides)


def save(recipe: Recipe) -> None:
    """Keep `recipe` with its run, whole and checked: runs/NAME/recipe.yaml, which `load` takes."""
    values = json.loads(json.dumps(dataclasses.asdict(recipe)))  # tuples as lists
    head = f"# accelerate launch -m distill.train {recipe.folder / SAVED}\n"
    (recipe.folder / SAVED).write_text(head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def options(recipe: Recipe) -> tuple[type[Any], Any]:
    """The class of the recipe's method and its checked options."""
    method = dict(recipe.method)
    name = method.pop("name", None)
    if not isinstance(name, str):
        raise ValueError("the key 'method.name' is missing")
    cls = find(DISTILLERS, name)
    return cls, build(cls.Options, method, "method")


def _check_meaning(recipe: Recipe) -> None:
    """What types cannot say: ranges, plug-ins that exist, turns that exist."""
    if not recipe.name or Path(recipe.name).name != recipe.name or recipe.name in (".", ".."):
        raise ValueError(f"name is {recipe.name!r}; it has to be a plain folder name, without slashes")
    if not find(TEACHERS, recipe.teacher.family).exports:
        raise ValueError(
            f"the family {recipe.teacher.family!r} has no pipeline to export; use it from Python, not in a recipe"
        )
    cls, _ = options(recipe)
    for turn in recipe.optimizers:
        if turn not in cls.turn_names:
            raise ValueError(
                f"unknown key 'optimizers.{turn}'{suggest(turn, cls.turn_names)}; "
                f"the turns of {recipe.method['name']} are {', '.join(cls.turn_names)}"
            )
    train = recipe.train
    for key in (
        "batch_size",
        "accumulation",
        "checkpoint_every",
        "keep_checkpoints",
        "log_every",
        "evaluate_teacher_steps",
    ):
        if getattr(train, key) < 1:
            raise ValueError(f"train.{key} is {getattr(train, key)}; it has to be at least 1")
    for key in ("steps", "evaluate_every", "keep_every"):
        if getattr(train, key) < 0:
            raise ValueError(f"train.{key} is {getattr(train, key)}; it has to be at least 0")
    if recipe.data.limit < 0:
        raise ValueError(f"data.limit is {recipe.data.limit}; it has to be at least 0, which means all")
    if train.batch_size % train.accumulation:
        raise ValueError(
            f"train.batch_size {train.batch_size} does not divide into {train.accumulation} micro-batches "
            "(train.accumulation)"
        )
    for turn, rate in recipe.optimizers.items():
        for key in ("lr", "eps", "weight_decay", "warmup"):
            if getattr(rate, key) < 0:
                raise ValueError(f"optimizers.{turn}.{key} is {getattr(rate, key)}; it cannot be negative")
            if math.isinf(getattr(rate, key)):
                raise ValueError(f"optimizers.{turn}.{key} is infinite")
    if train.max_norm <= 0:
        raise ValueError(f"train.max_norm is {train.max_norm}; clipping to nothing would stop all training")
    features, reference = recipe.evaluation.features, recipe.evaluation.reference
    if features not in ("auto", *NAMES):
        raise ValueError(
            f"evaluation.features is {features!r}{suggest(features, NAMES)}; choose auto, {', '.join(NAMES)}"
        )
    if reference not in (None, "pocket") and not Path(str(reference)).exists():
        raise ValueError(
            f"there is no evaluation.reference {reference}; give an .npz with mu and sigma or a folder of images"
        )
    if recipe.evaluation.prompts is not None:
        read_prompts(recipe.evaluation.prompts)
    if recipe.memory.rank < 1:
        raise ValueError(f"memory.rank is {recipe.memory.rank}; an adapter has rank 1 at least")
    if recipe.memory.tier == "shared" and train.compile != "none":
        raise ValueError(
            "memory.tier=shared switches adapters, which train.compile cannot follow; leave train.compile out"
        )
    if recipe.memory.eight_bit and train.channels_last:
        raise ValueError(
            "memory.eight_bit rounds moments in blocks that follow their order in memory, which train.channels_last "
            "changes; leave one of them out"
        )
    if recipe.memory.offload_teacher and recipe.memory.tier == "shared":
        raise ValueError(
            "memory.offload_teacher=true goes with memory.tier=full: the shared tier's teacher is its students' base"
        )
    if not 0 <= train.ema < 1:
        raise ValueError(f"train.ema is {train.ema}; it has to lie in [0, 1)")
    if train.evaluate_samples < 2:
        raise ValueError(
            f"train.evaluate_samples is {train.evaluate_samples}; a Frechet distance takes two samples at least"
        )
    if recipe.teacher.num_steps < 1 or math.isinf(recipe.teacher.guidance):
        raise ValueError("teacher.num_steps has to be at least 1, and teacher.guidance finite")
    if recipe.teacher.sigma_data <= 0:
        raise ValueError(f"teacher.sigma_data is {recipe.teacher.sigma_data}; a standard deviation is positive")


def _checked(overrides: typing.Sequence[str]) -> typing.Iterator[str]:
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise ValueError(f"{override!r} is no override; write key=value, for example train.steps=100")
        yield override


def _neighbours(path: Path) -> str:
    others = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    hint = suggest(str(path), others)
    return hint or (f"; {path.parent} holds {', '.join(Path(o).name for o in others)}" if others else "")
