"""THE training loop, for every method and teacher. Read it from top to bottom.

    fewstep train pocket/dmd [key=value ...]
    accelerate launch -m distill.train recipes/pocket/dmd.yaml [key=value ...]

Run the same command again to resume. The run's folder receives checkpoints, sample grids, `history.jsonl` (held-out
Frechet distance against training time), `log.jsonl` (losses against training time), tracker logs, and at the end
`pipeline/`, an ordinary diffusers pipeline.
"""

import dataclasses
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from distill.config.recipe import Recipe, check_exports, save
from distill.config.registry import TEACHERS, find
from distill.data import dataset as data
from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.exporting.pipeline import export_student
from distill.methods.base import Distiller
from distill.training.engine import Engine
from distill.training.guard import Stop
from distill.training.metric_log import MetricLog, Metrics
from distill.training.optimizers import set_learning_rate
from distill.training.run_folder import JsonlLog, fingerprint, finished, lock_run_folder
from distill.training.setup import build_monitor, checkpoints_folder, plan_data, prepare
from distill.training.state import TrainState
from teachers.core.teacher import Teacher


def train(
    recipe: Recipe,
    teacher: Teacher | None = None,
    latents: Tensor | None = None,
    captions: Sequence[str] | None = None,
) -> Path:
    """Run `recipe` to its end, or continue it from its newest checkpoint.

    Args:
        recipe: A checked recipe.
        teacher: A teacher that is in memory already; by default the recipe's own is loaded.
        latents: Native latents (N, *teacher.shape) to learn from, instead of the recipe's `data`.
        captions: A caption for each of the latents, where the teacher takes prompts.

    Returns:
        The folder of the exported pipeline.

    Raises:
        ValueError: One sentence for whatever the user can fix.
        SystemExit: Code 0 after a signal asked the run to stop; run it again to continue.
    """
    if teacher is None and recipe.teacher.path is None:
        raise ValueError("teacher.path must name a teacher, or a teacher must be passed to train")
    if teacher is None:
        check_exports(recipe)
        find(TEACHERS, recipe.teacher.family).locate(recipe.teacher.path)
    plan = plan_data(recipe, teacher, latents, captions)
    is_main = os.environ.get("RANK", "0") == "0"
    with lock_run_folder(recipe.folder) if is_main else nullcontext():
        mark = fingerprint(recipe, plan, teacher)
        if finished(recipe, mark):
            final = recipe.folder / "pipeline"
            if is_main:
                print(
                    f"{recipe.name} is finished: {final} "
                    "(train longer with train.steps=..., start over with another name=...)"
                )
            return final
        if is_main:
            save(recipe)
        with Engine(recipe.train, recipe.folder) as engine:
            return distil(recipe, plan, mark, engine, teacher)


def distil(recipe: Recipe, plan: data.Plan, mark: str, engine: Engine, teacher: Teacher | None = None) -> Path:
    """One run on every process of `engine`: prepare, resume, train, evaluate, export.

    Args:
        recipe: A checked recipe.
        plan: The data, from `plan_data`.
        mark: The run's fingerprint, stored in its checkpoints.
        engine: The processes, devices and precision.
        teacher: A teacher that is in memory already.

    Returns:
        The folder of the exported pipeline.
    """
    settings, folder = recipe.train, recipe.folder
    began = time.perf_counter()
    teacher, dataset = prepare(recipe, plan, engine, teacher)
    preparing = time.perf_counter() - began
    state = TrainState.build(recipe, teacher, engine)
    if state.resume(checkpoints_folder(recipe), engine):
        engine.print(f"resuming {folder} at step {state.step}")
    else:
        state.seconds = preparing  # encoding and teacher pairs are part of the cost
    for message in state.distiller.startup_messages():
        engine.print(message)
    monitor = build_monitor(recipe, teacher, dataset, engine)
    history = JsonlLog(folder / "history.jsonl", state.step)
    if settings.shard_teacher and settings.steps:
        engine.shard(teacher.denoiser.network)
    if settings.tracker != "none":
        engine.accelerator.init_trackers(recipe.name, config=_flatten(dataclasses.asdict(recipe)))

    def evaluate() -> None:
        if monitor:
            monitor.evaluate(history, state.distiller, state.ema, state.step, state.seconds, engine.trackers)

    stop = Stop(engine.group)
    bar = tqdm(total=settings.steps, initial=state.step, desc=recipe.name, disable=not engine.is_main, mininterval=1)
    log = MetricLog(engine, folder / "log.jsonl", state.step, bar)
    if _due(settings.evaluate_every, state.step, settings.steps) and history.last < state.step:
        evaluate()
    batches = dataset.micro_batches(batch_rngs(recipe, engine, state.distiller, state.step))
    stopping, clock = False, time.perf_counter()
    while state.step < settings.steps and not stopping:
        log.add(train_step(state, batches, engine, recipe))
        bar.update()
        stopping = stop.agreed()
        saving = stopping or state.step % settings.checkpoint_every == 0 or state.step == settings.steps
        logging = state.step % settings.log_every == 0
        state.seconds, clock = state.seconds + time.perf_counter() - clock, time.perf_counter()
        if logging or saving:
            state.guard.read(bar.write if engine.is_main else _ignore, engine.group)
        if logging:
            log.flush(state.step, state.seconds, state.guard.take())
        if saving:
            _save(state, recipe, engine, mark, must=stopping)
        if _due(settings.evaluate_every, state.step, settings.steps) and (not stopping or state.step == settings.steps):
            state.seconds += time.perf_counter() - clock
            evaluate()
            clock = time.perf_counter()  # evaluations are not part of the cost
    stop.restore()
    bar.close()
    if settings.tracker != "none":
        engine.accelerator.end_training()
    if stopping and state.step < settings.steps:
        engine.wait()
        engine.print(f"stopped at step {state.step}; run the same command again to continue")
        raise SystemExit(0)
    final = export_student(recipe, state, teacher, dataset, monitor, engine)
    engine.wait()
    return final


def train_step(state: TrainState, batches: Iterator[Batch], engine: Engine, recipe: Recipe) -> Metrics:
    """One step: every phase of the method in order, then the moving average.

    Args:
        state: What trains; changed in place.
        batches: One micro-batch for each phase and accumulation index, as `batch_rngs` counts them.
        engine: Gradient synchronisation, precision, clipping.
        recipe: Its `train` section is read.

    Returns:
        "phase/name" to one detached scalar for each micro-batch, on the device.
    """
    settings = recipe.train
    metrics: dict[str, list[Tensor]] = defaultdict(list)
    for index, phase in enumerate(state.distiller.phases(state.step)):
        optimizer = state.optimizers[phase]
        set_learning_rate(optimizer, state.rates[phase], state.step, settings.steps)
        for i in range(settings.accumulation):
            with engine.micro_batch(state.model, last=i == settings.accumulation - 1):
                with engine.autocast():
                    loss, details = state.model(phase, next(batches), state.step)
                engine.accelerator.backward(loss / settings.accumulation)
            for key, value in details.items():
                metrics[f"{phase}/{key}"].append(value)
        norm = engine.clip(optimizer, state.parameters[phase], settings.max_norm)
        metrics[f"{phase}/gradient_norm"].append(norm)
        state.guard.check(optimizer, phase, index, state.step, norm, loss)
        engine.update(optimizer)
    engine.update_ema(*state.averaged, min(settings.ema, (1 + state.step) / (10 + state.step)))
    state.step += 1
    return metrics


def batch_rngs(recipe: Recipe, engine: Engine, distiller: Distiller, start: int) -> Iterator[BatchRandom]:
    """The random numbers of every micro-batch of this process, from step `start` on; no two processes share a row."""
    settings = recipe.train
    for step in range(start, settings.steps):
        for index in range(len(distiller.phases(step))):
            for i in range(settings.accumulation):
                row = (i * engine.world_size + engine.rank) * engine.local_batch_size
                key = recipe.seed, step, index
                yield BatchRandom(key, row, row + engine.local_batch_size, settings.batch_size, engine.device)


def _save(state: TrainState, recipe: Recipe, engine: Engine, mark: str, must: bool) -> None:
    """Save a checkpoint; a failure ends the run if the recipe says so, or if it is the last save (`must`)."""
    settings = recipe.train
    try:
        state.save(checkpoints_folder(recipe), engine, mark, settings.keep_checkpoints, settings.keep_every)
    except ValueError as error:
        if must or settings.on_failed_save == "stop":
            raise
        tqdm.write(f"warning: {error}; training continues (train.on_failed_save=stop would end the run here)")


def _due(every: int, step: int, steps: int) -> bool:
    return bool(every) and (step % every == 0 or step == steps)


def _ignore(message: str) -> None:
    return


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups as dotted keys, with values that trackers accept."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat


if __name__ == "__main__":
    from distill.cli import main

    main("train")
