"""Preparation of a run before its first step: the teacher, the encoded data, and the held-out evaluation."""

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from distill.config.recipe import Recipe, method_options
from distill.config.registry import TEACHERS, find
from distill.config.run_files import CHECKPOINTS
from distill.config.sections import DTYPES
from distill.config.validation_prompts import check_validation_prompts
from distill.data import dataset as data
from distill.data import teacher_pairs
from distill.data.dataset import Dataset
from distill.data.latents import LatentsInMemory
from distill.data.plan import Plan, plan
from distill.methods.contract import requested_pairs
from distill.training.engine import Engine
from distill.training.features import choose_features
from distill.training.held_out import HeldOut
from distill.training.memory_plan import Processes, print_plan
from distill.training.run_folder import check_teacher_files, stored_contents
from distill.training.validation import Validation
from teachers.core.teacher import Teacher
from teachers.loading.distilled import distilled
from teachers.loading.in_memory import check_network
from teachers.loading.loras import FUSED, check_fit_of, fused_folder
from teachers.networks.quantized import quantize
from teachers.support.errors import reading


def check_arguments(recipe: object, teacher: object) -> None:
    """Raise ValueError if the arguments of `train` have other types, with the functions that make the right ones."""
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe must be a Recipe, as load_recipe returns it, got {type(recipe).__name__}")
    if teacher is not None and not isinstance(teacher, Teacher):
        raise ValueError(f"teacher must be a Teacher, as load_teacher returns it, got {type(teacher).__name__}")


def plan_data(
    recipe: Recipe,
    teacher: Teacher | None = None,
    latents: Tensor | None = None,
    captions: Sequence[str] | None = None,
) -> Plan:
    """Open and check the run's data, without loading a teacher.

    Args:
        recipe: A checked recipe; its `data` is read unless `latents` are given.
        teacher: A teacher that is in memory already.
        latents: Native latents (N, *teacher.shape) in memory; they need a `teacher` in memory.
        captions: A caption for each of the latents.

    Returns:
        The checked data.

    Raises:
        ValueError: If the data cannot be used.
    """
    cls, options = method_options(recipe)
    if teacher is None:
        check_teacher_files(recipe)
        check_fine_tunes(recipe)
    cls.check_run(options, recipe.teacher.guidance)
    family = type(teacher) if teacher is not None else find(TEACHERS, recipe.teacher.family)
    if latents is None:
        with reading(recipe.data.images or recipe.data.latents or recipe.data.prompts):
            prompted = family.takes_prompts(recipe.teacher.path) if teacher is None else teacher.prompted
            return plan(recipe.data, cls.needs_latents(options), prompted, family.medium_class, family.source)
    if teacher is None:
        raise ValueError("latents need a teacher in memory: pass both to train")
    if teacher.source:
        raise ValueError("latents must be None for a teacher with source images: set data.images of the recipe")
    if not isinstance(latents, Tensor) or latents.is_meta:
        found = "one on the meta device" if isinstance(latents, Tensor) else type(latents).__name__
        raise ValueError(f"latents must be a tensor with values, got {found}")
    if tuple(latents.shape[1:]) != tuple(teacher.shape):
        raise ValueError(
            f"latents must have the shape (N, {', '.join(map(str, teacher.shape))}), got {tuple(latents.shape)}"
        )
    if not latents.is_floating_point() or not len(latents):
        raise ValueError(f"latents must be real numbers in at least one row, got {len(latents)} of {latents.dtype}")
    if not bool(latents.isfinite().all()):
        raise ValueError("latents must be finite, got NaN or infinite values")
    captions = _captions(captions, len(latents), teacher)
    if len(captions) != len(latents):
        raise ValueError(f"captions must have the length of latents ({len(latents)}), got {len(captions)}")
    return Plan(latents=LatentsInMemory(latents.detach().float() / teacher.denoiser.path.sigma_data, captions))


def _captions(captions: Sequence[str] | None, count: int, teacher: Teacher) -> list[str]:
    """The captions of latents in memory."""
    if captions is None:
        if teacher.prompted:
            raise ValueError(
                'captions must have a text for each of the latents of a teacher with prompts, "" for none, got None'
            )
        return [""] * count
    found = list(captions) if isinstance(captions, Iterable) and not isinstance(captions, str) else None
    if found is None or not all(isinstance(caption, str) for caption in found):
        raise ValueError(f"captions must be a sequence of texts, got {captions!r:.80}")
    return found


def check_fine_tunes(recipe: Recipe) -> None:
    """Check from configurations and the headers of files that the recipe's fine-tunes fit its teacher.

    Raises:
        ValueError: If one does not.
    """
    if not recipe.teacher.loras or recipe.teacher.path is None:
        return
    family = find(TEACHERS, recipe.teacher.family)
    with reading(recipe.teacher.path):
        check_fit_of(family, family.locate(recipe.teacher.path), recipe.teacher.loras)


def prepare_in_memory(recipe: Recipe, teacher: Teacher) -> Teacher:
    """Check a recipe for a teacher in memory, and apply its guidance and its quantization to a copy for the run.

    Args:
        recipe: A checked recipe.
        teacher: The user's teacher, which a run does not change.

    Returns:
        The run's teacher. It shares the network's weights with `teacher`, unless a setting of the recipe changes the
        network in place.

    Raises:
        ValueError: If the recipe has validation prompts that the teacher cannot use, another teacher's path, family,
            sigma_data or size, or fine-tunes, which are fused into pipelines that are loaded only; or if the teacher's
            network cannot be copied and exported.
    """
    check_network(teacher.denoiser.network, "the network of the teacher")
    check_validation_prompts(recipe.evaluation, recipe.train.evaluate_every, teacher)
    if recipe.teacher.loras:
        raise ValueError("teacher.loras must be empty for a teacher in memory: fuse them into its pipeline first")
    path = recipe.teacher.path
    if path is not None and (teacher.origin is None or teacher.origin[0] != teacher.locate(path)):
        raise ValueError(
            "teacher.path must be null for a teacher in memory, or the path that it was loaded from, because reports "
            f"compare the student with the pipeline there, got {path!r}"
        )
    _check_same(recipe, teacher)
    memory, network = recipe.memory, teacher.denoiser.network
    changes = memory.tier == "lora" or memory.quantize != "none" or memory.activation_checkpointing
    changes = changes or memory.offload_teacher or recipe.train.shard_teacher
    own = copy.copy(teacher)
    own.denoiser = copy.deepcopy(teacher.denoiser, {} if changes else {id(network): network})
    _set_guidance(recipe, own)
    quantize(own.denoiser.network, memory.quantize)
    return own


def _check_same(recipe: Recipe, teacher: Teacher) -> None:
    """Raise ValueError if the recipe describes another teacher than the one in memory."""
    wanted, kind = recipe.teacher, type(teacher)
    other = "leave teacher.path null to take the teacher's own"
    if wanted.family != "auto" and find(TEACHERS, wanted.family) is not kind:
        raise ValueError(
            f"teacher.family must be auto, or the family of the teacher in memory, whose class is {kind.__name__}; got "
            f"{wanted.family} ({other})"
        )
    sigma_data = teacher.denoiser.path.sigma_data
    if wanted.sigma_data is not None and wanted.sigma_data != sigma_data:
        raise ValueError(
            f"teacher.sigma_data must be null, or that of the teacher in memory, {sigma_data:g}; got "
            f"{wanted.sigma_data:g} (load_teacher has an argument for it)"
        )
    size = vars(teacher).get("size") or vars(teacher)  # sounds have `seconds` only
    for name, value in kind.size_argument(wanted.size).get("size", {}).items():
        if size.get(name, value) != value:
            raise ValueError(
                f"teacher.size.{name} must be that of the teacher in memory, {size[name]}; got {value} ({other}; "
                "load_teacher has an argument for it)"
            )


def _set_guidance(recipe: Recipe, teacher: Teacher) -> None:
    if recipe.teacher.negative_prompt is not None:
        teacher.set_negative_prompt(recipe.teacher.negative_prompt)
    if recipe.teacher.image_guidance is not None:
        teacher.set_image_guidance(recipe.teacher.image_guidance)


def load_teacher(recipe: Recipe, device: torch.device) -> Teacher:
    """Load the recipe's teacher, with its fine-tunes, to `device` in the recipe's precision.

    Text encoders are loaded at their first use.
    """
    assert recipe.teacher.path is not None
    family = find(TEACHERS, recipe.teacher.family)
    dtype = DTYPES[recipe.teacher.precision]
    size = family.size_argument(recipe.teacher.size)
    with reading(recipe.teacher.path):
        path = recipe.teacher.path
        if recipe.teacher.loras:
            path = str(fused_folder(family, family.locate(path), recipe.teacher.loras, recipe.cache / FUSED))
        load = family.load if family.has_own_load() else partial(family.load_quantized, recipe.memory.quantize)
        teacher: Teacher = load(path, device, dtype, recipe.teacher.sigma_data, **size)
        quantize(teacher.denoiser.network, recipe.memory.quantize)  # of a family with its own `load`
        _set_guidance(recipe, teacher)
    return teacher


def prepare(
    recipe: Recipe,
    plan: Plan,
    engine: Engine,
    teacher: Teacher | None = None,
    most: int | None = None,
) -> tuple[Teacher, Dataset]:
    """Load the teacher, encode the data and make the method's teacher pairs. Every process calls it.

    Args:
        recipe: A checked recipe.
        plan: The data, from `plan_data`.
        engine: The run's engine.
        teacher: A teacher that is in memory already, instead of the recipe's.
        most: The most samples that are encoded and the most teacher pairs that are made; None: all.

    Returns:
        The teacher, without its text encoders in memory, and the dataset.
    """
    if engine.is_main and recipe.teacher.path is not None:
        print_plan(recipe, Processes(engine.world_size, engine.sharding), engine.device)
    pairs, steps = requested_pairs(*method_options(recipe))
    with reading(recipe.teacher.path or "the teacher"):
        contents = stored_contents(recipe) if teacher is None else teacher.contents()
        if teacher is None:
            teacher = load_teacher(recipe, engine.device)
            assert recipe.teacher.path is not None
            if few := distilled(teacher.locate(recipe.teacher.path)):
                engine.print(f"warning: the teacher seems to be distilled already: {few}")
        teacher.export_schedule = recipe.export.schedule
        dataset = data.prepare(plan, teacher, recipe, engine.accelerator, contents, most)
        requested = (pairs if most is None else min(pairs, most)), steps
        return teacher, teacher_pairs.attach(dataset, recipe, teacher, requested, engine.accelerator)


def build_held_out(recipe: Recipe, teacher: Teacher, dataset: Dataset, engine: Engine) -> HeldOut | None:
    """Make the held-out evaluation; None on processes that do not take part in it. Every process calls it."""
    with engine.accelerator.main_process_first():
        if not engine.is_main and engine.sharding is None:
            return None
        with reading(recipe.teacher.path or "the teacher"):
            return HeldOut(
                recipe, teacher, dataset, choose_features(recipe, teacher.medium), engine.device, engine.is_main
            )


def build_validation(
    recipe: Recipe, teacher: Teacher, dataset: Dataset, held_out: HeldOut | None, engine: Engine
) -> Validation | None:
    """What draws evaluation.validation_prompts; None without prompts or evaluations. Every process calls it."""
    if not recipe.evaluation.validation_prompts:
        return None
    with engine.accelerator.main_process_first(), reading(recipe.teacher.path or "the teacher"):
        if held_out is None:
            return None
        contents = dataset.teacher or teacher.contents()
        return Validation(recipe, teacher, contents, engine.device, engine.is_main)


def checkpoints_folder(recipe: Recipe) -> Path:
    """The folder of the run's checkpoints."""
    return recipe.folder / CHECKPOINTS
