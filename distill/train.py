"""THE training loop, for every method and teacher. Read it from top to bottom.

    accelerate launch -m distill.train recipes/pocket/dmd.yaml [key=value ...]

Run the same command again to resume. The run's folder receives checkpoints, sample grids, `history.jsonl` (the held-out
Frechet distance against training cost), `log.jsonl` (losses against the same), tracker logs, and at the end
`pipeline/`, an ordinary diffusers pipeline.
"""

import copy
import dataclasses
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from distill import pairs
from distill.config.recipe import DTYPES, OptimizerRecipe, Recipe, TrainRecipe, asked, options, save
from distill.config.registry import TEACHERS, find
from distill.data import dataset as data
from distill.data.draws import Draws
from distill.export import describe, export
from distill.memory import announce
from distill.methods.base import Distiller
from distill.training import checkpoint
from distill.training.checkpoint import Checkpoint
from distill.training.engine import Engine
from distill.training.guard import Skips, Stop
from distill.training.monitor import Monitor, choose_features
from distill.training.optimizers import adamw, schedule
from distill.training.run_folder import Journal, claim, fingerprint, finished
from teachers.networks.adapters import body
from teachers.networks.checkpointing import checkpoint_activations
from teachers.support.errors import speak

MOST_BROKEN = 10  # steps in a row without a finite gradient before the run gives up
MOST_BROKEN_FP16 = 40  # there the first ones are how the gradient scaler finds its scale


def train(recipe: Recipe) -> Path:
    """Run `recipe` to its end (or on from its newest checkpoint) and return the exported pipeline's folder."""
    cls, method_options = options(recipe)
    family = find(TEACHERS, recipe.teacher.family)
    family.locate(recipe.teacher.path)
    plan = data.plan(recipe.data, cls.needs_latents(method_options), family.guided)
    first = os.environ.get("RANK", "0") == "0"
    with claim(recipe.folder) if first else nullcontext():
        mark = fingerprint(recipe, plan)
        if finished(recipe, mark):
            final = recipe.folder / "pipeline"
            if first:
                print(f"{recipe.name} is finished: {final} (more steps: train.steps=...; afresh: another name=...)")
            return final
        if first:
            save(recipe)
        with Engine(recipe.train, recipe.folder) as engine:
            return distil(recipe, plan, mark, engine)


def distil(recipe: Recipe, plan: data.Plan, mark: str, engine: Engine) -> Path:
    """The run itself, on every process of `engine` at once; `mark` tells its checkpoints from other runs'."""
    settings, folder = recipe.train, recipe.folder
    accelerator, device, chief = engine.accelerator, engine.device, engine.chief

    # --- the teacher and what it encodes ------------------------------------------------------------------------------
    if chief:
        announce(recipe, engine.world, device)
    begun = time.perf_counter()
    cls, method_options = options(recipe)
    family = find(TEACHERS, recipe.teacher.family)
    teacher = family.load(recipe.teacher.path, device, DTYPES[recipe.teacher.precision], recipe.teacher.sigma_data)
    dataset = data.prepare(plan, teacher, recipe, accelerator)
    dataset = pairs.attach(dataset, recipe, teacher, cls.pairs(method_options), accelerator)
    preparing = time.perf_counter() - begun

    # --- what trains --------------------------------------------------------------------------------------------------
    torch.manual_seed(recipe.seed)
    if recipe.memory.tier == "shared":
        engine.refuse_sharding("memory.tier=shared")
        teacher.share(recipe.memory.rank)
    if recipe.memory.keeps_few and not checkpoint_activations(teacher.denoiser.network, recipe.memory.checkpointing):
        accelerator.print("memory.checkpointing is off: this architecture cannot")
    if recipe.memory.eight_bit:
        engine.refuse_sharding("memory.eight_bit=true")
    distiller: Distiller = cls(teacher, recipe.teacher.guidance, method_options).to(device)
    engine.lay_out(body(teacher.denoiser.network), distiller)
    if recipe.memory.offload_teacher:
        engine.refuse_sharding("memory.offload_teacher=true")
        teacher.offload(device)
    average = copy.deepcopy(distiller.student).requires_grad_(False)
    engine.lay_out(average)
    start, spent = 0, 0.0
    if chief:
        checkpoint.mend(folder / "checkpoints")
    accelerator.wait_for_everyone()
    saved = checkpoint.load_newest(folder / "checkpoints")
    if saved is not None:
        distiller.load_state_dict(saved.weights)
        average.load_state_dict(saved.average)
        start, spent = saved.meta["step"], saved.meta["seconds"]
        accelerator.print(f"resuming {folder} at step {start}")
    for note in distiller.notes():
        accelerator.print(note)
    engine.check_same(start, "checkpoints")
    model = engine.prepare(distiller, average)
    followed = list(average.parameters()), list(distiller.student.parameters())
    networks = {turn: [p for m in modules for p in m.parameters()] for turn, modules in distiller.networks().items()}
    rates = {turn: recipe.optimizers.get(turn, OptimizerRecipe()) for turn in networks}
    optimizers = {turn: adamw(networks[turn], rates[turn], recipe.memory.eight_bit) for turn in networks}
    if saved is not None:
        for turn, optimizer in optimizers.items():
            engine.restore(optimizer, saved.optimizers[turn])
        if engine.scaler is not None and "scaler" in saved.optimizers:
            engine.scaler.load_state_dict(saved.optimizers["scaler"])
    spent += preparing if saved is None else 0.0  # teacher pairs and encoding are part of the cost
    saved = None  # the loaded copy would stay in memory for the whole run

    # --- how we know --------------------------------------------------------------------------------------------------
    features = choose_features(recipe)
    with accelerator.main_process_first():
        monitor = Monitor(recipe, teacher, dataset, features, device, chief) if chief or engine.sharding else None
        history, losses = (Journal(folder / f"{name}.jsonl", start) for name in ("history", "log"))
    if settings.shard_teacher and settings.steps:
        engine.shard(teacher.denoiser.network)
    if settings.tracker != "none":
        accelerator.init_trackers(recipe.name, config=_flat(dataclasses.asdict(recipe)))

    # --- the loop -----------------------------------------------------------------------------------------------------
    logs: dict[str, list[Tensor]] = defaultdict(list)
    skips = Skips(recipe.seed, MOST_BROKEN if engine.scaler is None else MOST_BROKEN_FP16)
    stop = Stop(engine.group)
    bar = tqdm(total=settings.steps, initial=start, desc=recipe.name, disable=not chief, mininterval=1)
    step, left = start, False
    if monitor and _due(settings.evaluate_every, step, settings.steps) and history.last < step:
        monitor.evaluate(history, distiller, average, step, spent, engine.accelerator.trackers)
    batches = dataset.micro_batches(_draws(recipe, engine, distiller, start))
    begun = time.perf_counter()
    while step < settings.steps and not left:
        for number, turn in enumerate(distiller.turns(step)):
            optimizer, rate = optimizers[turn], rates[turn]
            for group in optimizer.param_groups:
                group["lr"] = rate.lr * schedule(rate, step, settings.steps)
            for i in range(settings.accumulation):
                batch = next(batches)
                with engine.micro_batch(model, last=i == settings.accumulation - 1):
                    with engine.autocast():
                        loss, details = model(turn, batch, step)
                    accelerator.backward(loss / settings.accumulation)
                del batch
                for key, value in details.items():
                    logs[f"{turn}/{key}"].append(value)
            norm = engine.clip(optimizer, networks[turn], settings.max_norm)
            logs[f"{turn}/gradient_norm"].append(norm)
            skips.check(optimizer, turn, number, step, norm, loss)
            engine.update(optimizer)
        engine.follow(*followed, min(settings.ema, (1 + step) / (10 + step)))
        step += 1
        bar.update()

        left = stop.agreed()
        saving = left or step % settings.checkpoint_every == 0 or step == settings.steps
        logging = step % settings.log_every == 0
        if logging or saving:
            skips.read(bar.write if chief else _nothing, engine.group)
        if logging:
            values = _log(engine, logs, step, bar) | skips.take()
            if chief:
                losses.append({"step": step, "seconds": round(spent + time.perf_counter() - begun, 2)} | values)
        if saving:
            meta = {"step": step, "seconds": spent + time.perf_counter() - begun, "fingerprint": mark}
            states = {turn: optimizer.state_dict() for turn, optimizer in optimizers.items()}
            if engine.scaler is not None:
                states["scaler"] = engine.scaler.state_dict()
            state = Checkpoint(
                engine.whole(distiller.state_dict()), engine.whole(average.state_dict()), engine.whole(states), meta
            )
            if chief:
                _save(folder / "checkpoints", state, settings, must=left)
        if monitor and _due(settings.evaluate_every, step, settings.steps) and (not left or step == settings.steps):
            spent += time.perf_counter() - begun
            monitor.evaluate(history, distiller, average, step, spent, engine.accelerator.trackers)
            begun = time.perf_counter()
    stop.restore()
    spent += time.perf_counter() - begun
    bar.close()
    if settings.tracker != "none":
        accelerator.end_training()
    if left and step < settings.steps:
        accelerator.wait_for_everyone()
        accelerator.print(f"stopped at step {step} as asked; run the same command again to go on")
        raise SystemExit(0)

    # --- the result ---------------------------------------------------------------------------------------------------
    final = folder / "pipeline"
    times = monitor.best_times(distiller, average) if monitor else []
    student = engine.exported(average)
    if chief:
        if step == 0:
            student = teacher.student()  # untrained: the teacher itself, whatever the method prepared it for
        cost = {
            "steps": step,
            "seconds": round(spent, 1),
            "samples": step * settings.batch_size,
            "device": _device_name(device),
        }
        record = describe(recipe, teacher, distiller, student, times, cost, features)
        final = export(folder, teacher, student, times, record, dataset.captions)
        print(f"the student's pipeline: {final}")
    accelerator.wait_for_everyone()
    return final


def _draws(recipe: Recipe, engine: Engine, distiller: Distiller, start: int) -> Iterator[Draws]:
    """Those of each micro-batch of this process, from step `start` on: of no row that another one has."""
    settings = recipe.train
    for step in range(start, settings.steps):
        for number in range(len(distiller.turns(step))):
            for i in range(settings.accumulation):
                row = (i * engine.world + engine.rank) * engine.share
                key = recipe.seed, step, number
                yield Draws(key, row, row + engine.share, settings.batch_size, engine.device)


def _due(every: int, step: int, steps: int) -> bool:
    return bool(every) and (step % every == 0 or step == steps)


def _nothing(_: str) -> None:
    return


def _save(folder: Path, state: Checkpoint, settings: TrainRecipe, must: bool) -> None:
    """Save; where that fails, stop or go on as the recipe says. The last save before leaving `must` succeed."""
    try:
        checkpoint.save(folder, state, settings.keep_checkpoints, settings.keep_every)
    except ValueError as error:
        if must or settings.on_failed_save == "stop":
            raise
        tqdm.write(f"warning: {error}; going on (train.on_failed_save=stop would end the run here)")


def _log(engine: Engine, logs: dict[str, list[Tensor]], step: int, bar: Any) -> dict[str, float]:
    """The interval's means, gathered over processes: the only place in the loop where the host waits for the device."""
    if not logs:
        return {}
    # Over finite values: a skipped step would make the whole interval's mean say nothing.
    stacks = [torch.stack([v.detach().float() for v in values]) for values in logs.values()]
    means = torch.stack([torch.where(torch.isfinite(v), v, torch.nan).nanmean() for v in stacks])
    values = dict(zip(logs, engine.accelerator.reduce(means, "mean").tolist(), strict=True))
    logs.clear()
    engine.accelerator.log(values, step=step)
    bar.set_postfix(
        {key.split("/")[1]: f"{v:.3g}" for key, v in values.items() if key.startswith("student/") and "loss" in key}
    )
    return values


def _flat(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{where}{key}.")
        else:
            flat[where + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat


def _device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} threads"
    )


def command() -> None:
    train(asked(__doc__))


if __name__ == "__main__":
    speak(command)
