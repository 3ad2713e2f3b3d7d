"""`fewstep train RECIPE --dry-run`: check everything that a run needs, measure a few steps, estimate its hours."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import yaml

from distill.config.recipe import Recipe, method_options, with_defaults
from distill.data.dataset import Dataset
from distill.data.plan import Plan
from distill.methods.contract import check_schedules, requested_pairs
from distill.training.engine import Engine
from distill.training.memory_plan import Processes, fits, plan_lines
from distill.training.setup import build_held_out, plan_data, prepare
from distill.training.state import TrainState
from distill.training.status import duration
from distill.training.step import batch_rngs, train_step
from distill.training.trackers import check_tracker
from teachers.core.teacher import Teacher
from teachers.describe import describe
from teachers.support.text import counted

WARMUP, MEASURED = 1, 3  # steps
T = TypeVar("T")


def dry_run(recipe: Recipe) -> None:
    """Print the resolved recipe, the data, the teacher, the memory plan and the estimated hours; train nothing.

    The estimate comes from a few real steps on this machine, in a temporary folder that is deleted.

    Raises:
        ValueError: One sentence for whatever would stop the run.
    """
    assert recipe.teacher.path is not None
    complete = yaml.safe_dump(_plain(with_defaults(recipe)), sort_keys=False, allow_unicode=True)
    print(f"recipe, with every default:\n{_indent(complete)}")
    check_tracker(recipe.train.tracker)
    plan = plan_data(recipe)
    print(f"data: {plan.summary()}")
    print(f"teacher: {describe(recipe.teacher.path, recipe.teacher.size, recipe.teacher.loras)}")
    with Engine(dataclasses.replace(recipe.train, tracker="none"), recipe.folder) as engine:
        samples, processes = engine.local_batch_size, Processes(engine.world_size, engine.sharding)
        print("\n".join(plan_lines(recipe, samples, engine.device, processes)))
        if not fits(recipe, samples, engine.device, processes):
            print("no steps were measured, because the run does not fit into the free memory")
            return
        with tempfile.TemporaryDirectory() as folder:
            _measure(recipe, plan, Path(folder), engine)


def _measure(recipe: Recipe, plan: Plan, folder: Path, engine: Engine) -> None:
    """Time data, steps and one evaluation on a small part of the data, and print what the whole run takes."""
    settings = recipe.train
    few = settings.batch_size
    train = dataclasses.replace(settings, steps=max(settings.steps, WARMUP + MEASURED))
    small = dataclasses.replace(recipe, output=str(folder), train=train)
    pairs, _ = requested_pairs(*method_options(recipe))
    limited = _first_rows(recipe, plan, few)
    (teacher, dataset), preparing = _timed(lambda: prepare(small, limited, engine, most=few))
    state = TrainState.build(small, teacher, engine)
    if engine.sharding is None:
        check_schedules(state.distiller)
    state.step = train.steps - WARMUP - MEASURED  # the first steps of a method may be warm-up, with other losses
    batches = dataset.micro_batches(batch_rngs(small, engine, state.distiller, state.step))
    _timed(lambda: [train_step(state, batches, engine, small) for _ in range(WARMUP)])
    _, taken = _timed(lambda: [train_step(state, batches, engine, small) for _ in range(MEASURED)])
    step = taken / MEASURED
    parts = {
        "training": step * settings.steps,
        "evaluations": _evaluations(small, recipe, teacher, dataset, engine, state),
    }
    if pairs:
        made = min(pairs, few)
        parts["teacher pairs"] = preparing * pairs / made
    print(f"{step:.3g} seconds per step with a batch of {settings.batch_size}, after {WARMUP} step of warm-up")
    for name, seconds in parts.items():
        print(f"  {name:<14} {duration(seconds)}")
    machine = f"this machine with {counted(engine.world_size, 'process', 'processes')}"
    print(f"estimated total: {duration(sum(parts.values()))} on {machine}")


def _first_rows(recipe: Recipe, plan: Plan, count: int) -> Plan:
    """The first prompts or latents of the data; `prepare` limits images, because some may be unusable."""
    if plan.latents is None:
        return dataclasses.replace(plan, prompts=plan.prompts[:count])
    count = min(recipe.data.limit or count, count)
    return plan_data(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, limit=count)))


def _evaluations(
    small: Recipe, recipe: Recipe, teacher: Teacher, dataset: Dataset, engine: Engine, state: TrainState
) -> float:
    """Seconds of all evaluations, the teacher's held-out samples among them, from one small batch of each."""
    settings = recipe.train
    if not settings.evaluate_every:
        return 0.0
    count = min(settings.evaluate_samples, settings.batch_size)
    small = dataclasses.replace(small, train=dataclasses.replace(small.train, evaluate_samples=max(2, count)))
    held_out, making = _timed(lambda: build_held_out(small, teacher, dataset, engine))
    assert held_out is not None
    times = state.distiller.sampling_schedules()
    _, judging = _timed(lambda: held_out.distance(state.ema, times[0]))
    scale = settings.evaluate_samples / max(2, count)
    rounds = settings.steps // settings.evaluate_every + 1
    counts = len(state.distiller.step_counts(times[0]))
    return scale * (making + judging * (rounds * counts + len(times)))


def _timed(task: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return task(), time.perf_counter() - began


def _plain(recipe: Recipe) -> dict[str, object]:
    values: dict[str, object] = yaml.safe_load(yaml.safe_dump(_lists(dataclasses.asdict(recipe))))
    return values


def _lists(value: object) -> object:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _indent(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
