"""The training loop of every method and teacher.

    fewstep train pocket/dmd [key=value ...]
    accelerate launch -m distill.train recipes/pocket/dmd.yaml [key=value ...]

Run the same command again to resume. The run's folder contains checkpoints, sample grids, `history.jsonl` (held-out
Frechet distance against training time), `log.jsonl` (losses against training time), tracker logs, and at the end
`pipeline/`, an ordinary diffusers pipeline.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from distill.config.recipe import Recipe, check_exports
from distill.config.registry import TEACHERS, find
from distill.config.run_files import LOG, PIPELINE
from distill.config.saved import save
from distill.data.dataset import Dataset
from distill.data.plan import Plan
from distill.exporting.finish import finish, report_failure
from distill.exporting.rehearsal import rehearse_export
from distill.methods.contract import check_schedules
from distill.training.engine import Engine
from distill.training.guard import Stop
from distill.training.launch import exit_code
from distill.training.metric_log import MetricLog
from distill.training.observer import Observer
from distill.training.optimizers import changed_rate
from distill.training.outcome import failed_before
from distill.training.run_folder import check_same_run, fingerprint, finished, flatten, lock_run_folder, run_key
from distill.training.setup import (
    check_arguments,
    checkpoints_folder,
    plan_data,
    prepare,
    prepare_in_memory,
)
from distill.training.state import TrainState
from distill.training.status import Status
from distill.training.step import batch_rngs, train_step
from distill.training.trackers import check_tracker
from distill.training.watchdog import watched
from teachers.core.teacher import Teacher
from teachers.support.errors import reading
from teachers.support.text import printable
from teachers.support.threads import adapt_threads


@watched()
def train(
    recipe: Recipe,
    teacher: Teacher | None = None,
    latents: Tensor | None = None,
    captions: Sequence[str] | None = None,
) -> Path:
    """Train by `recipe` until its last step, starting from its newest checkpoint if there is one.

    Args:
        recipe: A checked recipe.
        teacher: A teacher in memory, which the run does not change; by default the recipe's teacher is loaded.
        latents: Native latents (N, *teacher.shape) to learn from, instead of the recipe's `data`.
        captions: A caption for each of the latents, for teachers with prompts.

    Returns:
        The folder of the exported pipeline.

    Raises:
        ValueError: If the recipe or the data cannot be used, with what would be right.
        SystemExit: After SIGINT (code 130) or SIGTERM (143); run it again to continue, except after a signal during
            the last step or the export, which is completed. See `exit_code` for processes that torchrun started.
        RunFailed: A SystemExit with code 3: training went wrong, and only its best EMA, if any, was exported.
    """
    check_arguments(recipe, teacher)
    check_tracker(recipe.train.tracker)
    if teacher is None and recipe.teacher.path is None:
        raise ValueError("teacher.path must be set, or a teacher must be passed to train")
    if teacher is None:
        check_exports(recipe)
        find(TEACHERS, recipe.teacher.family).locate(recipe.teacher.path)
    else:
        teacher = prepare_in_memory(recipe, teacher)
    plan = plan_data(recipe, teacher, latents, captions)
    is_main = os.environ.get("RANK", "0") == "0"
    with lock_run_folder(recipe.folder) if is_main else nullcontext():
        identity = fingerprint(recipe, plan, teacher)
        with reading(recipe.folder):
            failure = failed_before(recipe.folder, run_key(identity))
            done = finished(recipe, identity)
        if failure is not None and failure.step >= recipe.train.steps:
            if not is_main:
                time.sleep(10)  # the launcher ends all processes with the first; the main one prints the error
            report_failure(failure, recipe.folder, is_main)
        if done:
            final = recipe.folder / PIPELINE
            if is_main:
                print(
                    f"{recipe.name} is finished: {final} "
                    "(train longer with train.steps=..., start again with another name=...)"
                )
            return final
        if is_main:
            save(recipe)
        with Engine(recipe.train, recipe.folder) as engine:
            status = Status(recipe, engine.is_main)
            with status.until_the_end():
                return distil(recipe, plan, identity, engine, teacher, status)


def distil(
    recipe: Recipe,
    plan: Plan,
    identity: dict[str, str],
    engine: Engine,
    teacher: Teacher | None = None,
    status: Status | None = None,
) -> Path:
    """One run: prepare, resume, train, evaluate, export. Every process calls it.

    Args:
        recipe: A checked recipe.
        plan: The data, from `plan_data`.
        identity: The run's fingerprint, stored in its checkpoints.
        engine: The processes, devices and precision.
        teacher: A teacher in memory; by default the recipe's teacher is loaded.
        status: The status file of the run.

    Returns:
        The folder of the exported pipeline.
    """
    status = status or Status(recipe, engine.is_main)
    settings, folder, run = recipe.train, recipe.folder, run_key(identity)
    if settings.tracker != "none":
        with reading(f"train.tracker={settings.tracker}", "cannot be started"):
            engine.accelerator.init_trackers(recipe.name, config=_tracked(recipe))
    start = time.perf_counter()
    teacher, dataset = prepare(recipe, plan, engine, teacher)
    state = _first_state(recipe, teacher, dataset, engine, identity, time.perf_counter() - start)
    observer = Observer(recipe, state, teacher, dataset, engine, status, run)
    if settings.shard_teacher and settings.steps:
        engine.shard(teacher.denoiser.network)
    stop = Stop(engine.group)
    bar = tqdm(
        total=settings.steps, initial=state.step, desc=printable(recipe.name), disable=not engine.is_main, mininterval=1
    )
    log = MetricLog(engine, folder / LOG, state.step, bar, run)
    status.step, status.seconds = state.step, state.seconds
    observer.observe(first=True)
    batches = dataset.micro_batches(batch_rngs(recipe, engine, state.distiller, state.step))
    stopping, last, untrained = False, time.perf_counter(), state.step == 0
    while state.step < settings.steps and not stopping:
        adapt_threads()
        log.add(train_step(state, batches, engine, recipe))
        bar.update()
        stopping = stop.agreed()
        saving = stopping or state.step % settings.checkpoint_every == 0 or state.step == settings.steps
        logging = state.step % settings.log_every == 0
        state.seconds, last = state.seconds + time.perf_counter() - last, time.perf_counter()
        status.training(state.step, state.seconds)
        if logging or saving:
            state.guard.read(bar.write if engine.is_main else _ignore, engine.group)
        if untrained and state.step == settings.steps:
            state.guard.check_updated()
        if logging:
            log.flush(state.step, state.seconds, state.guard.take_counts())
        if saving:
            _save(state, recipe, engine, identity, required=stopping)
        if not stopping or state.step == settings.steps:
            if state.step < settings.steps:  # an export has the seconds of the last checkpoint, now or later
                state.seconds += time.perf_counter() - last
            observer.observe()
            last = time.perf_counter()  # evaluations are not part of the cost
    bar.close()
    if settings.tracker != "none":
        for tracker in engine.accelerator.trackers:  # `end_training` also ends the process group, which is still used
            tracker.finish()
    if stopping and state.step < settings.steps:
        stop.restore()
        engine.wait()
        engine.print(f"stopped at step {state.step}; run the same command again to continue")
        raise SystemExit(exit_code(stop.number, engine.is_main))
    status.write("exporting")
    stop.restore()  # `finish` delays signals itself
    return finish(recipe, state, teacher, dataset, observer.held_out, engine, identity, stop.number)


def _first_state(
    recipe: Recipe,
    teacher: Teacher,
    dataset: Dataset,
    engine: Engine,
    identity: dict[str, str],
    preparation: float,
) -> TrainState:
    """The state of the newest checkpoint, or that of an untrained student.

    A new run starts at `preparation` seconds, because encoding and teacher pairs are part of its cost.
    """
    state = TrainState.build(recipe, teacher, engine)
    if engine.sharding is None:
        check_schedules(state.distiller)
    if state.resume(checkpoints_folder(recipe), engine, lambda meta: check_same_run(meta, recipe, identity)):
        engine.print(f"resuming {recipe.folder} at step {state.step}")
        for phase, optimizer in state.optimizers.items():
            if change := changed_rate(optimizer, state.rates[phase], state.step, recipe.train.steps):
                engine.print(
                    f"warning: the learning rate of phase {phase} changes {change} at step {state.step}, because the "
                    "run had another number of steps (train.steps) before"
                )
    else:
        state.seconds = preparation
        if recipe.train.steps and engine.sharding is None:
            with engine.accelerator.main_process_first():
                if engine.is_main:
                    rehearse_export(recipe, state, teacher, dataset)
    for message in state.distiller.startup_messages():
        engine.print(message)
    return state


def _save(state: TrainState, recipe: Recipe, engine: Engine, identity: dict[str, str], required: bool) -> None:
    """Save a checkpoint. A failure ends the run if train.on_failed_save is "stop" or the save is `required`."""
    settings = recipe.train
    try:
        state.save(checkpoints_folder(recipe), engine, identity, settings.keep_checkpoints, settings.keep_every)
    except ValueError as error:
        if required or settings.on_failed_save == "stop":
            raise
        tqdm.write(f"warning: {error}; training continues (set train.on_failed_save=stop to end the run instead)")


def _ignore(message: str) -> None:
    return


def _tracked(recipe: Recipe) -> dict[str, Any]:
    """The recipe with dotted keys, and values that trackers accept."""
    leaves = flatten(dataclasses.asdict(recipe))
    return {key: value if isinstance(value, int | float | str | bool) else str(value) for key, value in leaves.items()}


if __name__ == "__main__":
    from distill.cli import main

    main("train")
