"""THE training loop, for every method and teacher. Read it from top to bottom.

    accelerate launch -m distill.train recipes/pocket/dmd.yaml [key=value ...]

Run the same command again to resume. The run's folder receives checkpoints, sample grids, `history.jsonl` (the held-out
Frechet distance against training cost), tracker logs, and at the end `pipeline/`, an ordinary diffusers pipeline.
"""

import argparse
import copy
import dataclasses
import math
import time
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor
from tqdm import tqdm

from distill import checkpoint, data, pairs
from distill.checkpoint import Checkpoint
from distill.distiller import Distiller
from distill.draws import Draws
from distill.errors import speak
from distill.export import export
from distill.monitor import Monitor, choose_features
from distill.recipe import DTYPES, OptimizerRecipe, Recipe, load, options
from distill.registry import TEACHERS, find
from distill.run import Stop, append_history, claim, fingerprint, finished
from teachers.denoiser import Denoiser

MOST_BROKEN = 10  # steps in a row without a finite gradient before the run gives up


def train(recipe: Recipe) -> Path:
    """Run `recipe` to its end (or on from its newest checkpoint) and return the exported pipeline's folder."""
    settings, folder = recipe.train, recipe.folder
    cls, method_options = options(recipe)
    family = find(TEACHERS, recipe.teacher.family)
    family.locate(recipe.teacher.path)
    plan = data.plan(recipe.data, cls.needs_latents(method_options), family.guided)
    claim(folder)
    if finished(recipe):
        print(
            f"{recipe.name} is finished: {folder / 'pipeline'} (more steps: train.steps=...; afresh: another name=...)"
        )
        return folder / "pipeline"

    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),  # schedules are float64, which Apple's GPUs lack
        mixed_precision=settings.precision,
        log_with=None if settings.tracker == "none" else settings.tracker,
        project_dir=str(folder),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # a turn uses some networks only
    )
    device, chief = accelerator.device, accelerator.is_main_process
    micro = settings.batch_size // settings.accumulation
    if micro % accelerator.num_processes:
        raise ValueError(
            f"train.batch_size / train.accumulation is {micro}, "
            f"which does not divide over {accelerator.num_processes} processes"
        )

    # --- what trains --------------------------------------------------------------------------------------------------
    torch.manual_seed(recipe.seed)
    teacher = family.load(recipe.teacher.path, device, DTYPES[recipe.teacher.precision], recipe.teacher.sigma_data)
    if teacher.guided:
        teacher.unconditional(teacher.condition([""]))  # kept from here on: made in float32, outside any autocast
    distiller: Distiller = cls(teacher, recipe.teacher.guidance, method_options).to(device)
    average = copy.deepcopy(distiller.student).requires_grad_(False)
    networks = {turn: [p for m in modules for p in m.parameters()] for turn, modules in distiller.networks().items()}
    rates = {turn: recipe.optimizers.get(turn, OptimizerRecipe()) for turn in networks}
    optimizers = {turn: _optimizer(networks[turn], rates[turn]) for turn in networks}
    start, spent = 0, 0.0
    saved = checkpoint.load_newest(folder / "checkpoints")
    if saved is not None:
        distiller.load_state_dict(saved.weights)
        average.load_state_dict(saved.average)
        for turn, optimizer in optimizers.items():
            optimizer.load_state_dict(saved.optimizers[turn])
        start, spent = saved.meta["step"], saved.meta["seconds"]
        accelerator.print(f"resuming {folder} at step {start}")
    for note in distiller.notes():
        accelerator.print(note)
    model, *prepared = accelerator.prepare(distiller, *optimizers.values())
    optimizers = dict(zip(optimizers, prepared, strict=True))

    # --- what it learns from, and how we know -------------------------------------------------------------------------
    begun = time.perf_counter()
    with accelerator.main_process_first():
        dataset = data.prepare(plan, teacher, device, folder / "cache", recipe.teacher)
    dataset = pairs.attach(dataset, recipe, teacher, cls.pairs(method_options), accelerator)
    spent += time.perf_counter() - begun if saved is None else 0.0  # teacher pairs and encoding are part of the cost
    features = choose_features(recipe)
    monitor = Monitor(recipe, teacher, dataset, features, device) if chief else None
    if settings.tracker != "none":
        accelerator.init_trackers(recipe.name, config=_flat(dataclasses.asdict(recipe)))

    # --- the loop -----------------------------------------------------------------------------------------------------
    logs: dict[str, list[Tensor]] = defaultdict(list)
    stop, broken = Stop(), dict.fromkeys(networks, 0)
    bar = tqdm(total=settings.steps, initial=start, desc=recipe.name, disable=not chief, mininterval=1)
    begun = time.perf_counter()
    step = start
    if step == 0 and settings.evaluate_every and monitor:
        _evaluate(monitor, distiller, average, 0, spent, accelerator)
        begun = time.perf_counter()
    while step < settings.steps and not stop.asked:
        for number, turn in enumerate(distiller.turns(step)):
            for group in optimizers[turn].param_groups:
                group["lr"] = rates[turn].lr * _schedule(rates[turn], step, settings.steps)
            for i in range(settings.accumulation):
                last = i == settings.accumulation - 1
                share = micro // accelerator.num_processes
                first = i * micro + accelerator.process_index * share
                draws = Draws((recipe.seed, step, number), first, first + share, settings.batch_size, device)
                with nullcontext() if last else accelerator.no_sync(model):
                    loss, details = model(turn, dataset.batch(draws), step)
                    accelerator.backward(loss / settings.accumulation)
                for key, value in details.items():
                    logs[f"{turn}/{key}"].append(value)
            norm = accelerator.clip_grad_norm_(networks[turn], settings.max_norm)
            if norm is not None and settings.precision != "fp16":  # fp16's scaler skips such steps by itself
                logs[f"{turn}/gradient_norm"].append(norm.detach())
                broken[turn] = 0 if bool(torch.isfinite(norm)) else broken[turn] + 1
            if broken[turn] == MOST_BROKEN:
                raise ValueError(
                    f"{broken[turn]} steps in a row had gradients that are not finite (at step {step}, turn {turn}); "
                    f"lower optimizers.{turn}.lr and run again from the last checkpoint"
                )
            if not broken[turn]:
                optimizers[turn].step()
            optimizers[turn].zero_grad(set_to_none=True)
        _follow(average, distiller.student, min(settings.ema, (1 + step) / (10 + step)))
        step += 1
        bar.update()

        if step % settings.log_every == 0:
            _log(accelerator, logs, step, bar)
        if (
            chief
            and settings.evaluate_every
            and monitor
            and (step % settings.evaluate_every == 0 or step == settings.steps)
        ):
            spent += time.perf_counter() - begun
            _evaluate(monitor, distiller, average, step, spent, accelerator)
            begun = time.perf_counter()
        if chief and (step % settings.checkpoint_every == 0 or step == settings.steps or stop.asked):
            meta = {"step": step, "seconds": spent + time.perf_counter() - begun, "fingerprint": fingerprint(recipe)}
            states = {turn: optimizer.state_dict() for turn, optimizer in optimizers.items()}
            checkpoint.save(
                folder / "checkpoints",
                Checkpoint(distiller.state_dict(), average.state_dict(), states, meta),
                settings.keep_checkpoints,
            )
        accelerator.wait_for_everyone()
    stop.restore()
    spent += time.perf_counter() - begun
    bar.close()
    if settings.tracker != "none":
        accelerator.end_training()
    if stop.asked and step < settings.steps:
        accelerator.print(f"stopped at step {step} as asked; run the same command again to go on")
        raise SystemExit(0)

    # --- the result ---------------------------------------------------------------------------------------------------
    final = folder / "pipeline"
    if chief and monitor:
        times = _best_times(monitor, distiller, average)
        if step == 0:
            average = teacher.student()  # untrained: the teacher itself, whatever the method prepared it for
        cost = {
            "steps": step,
            "seconds": round(spent, 1),
            "samples": step * settings.batch_size,
            "device": _device_name(device),
        }
        final = export(recipe, teacher, distiller, average, times, cost, features, dataset.captions)
        print(f"the student's pipeline: {final}")
    accelerator.wait_for_everyone()
    return final


def _optimizer(parameters: list[torch.nn.Parameter], rate: OptimizerRecipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, rate.lr, rate.betas, rate.eps, rate.weight_decay, fused=True)


def _schedule(rate: OptimizerRecipe, step: int, steps: int) -> float:
    """The learning rate's factor at `step`: linear warm-up, then constant or a cosine to zero."""
    warm = min(1.0, (step + 1) / (rate.warmup + 1))
    return warm if rate.schedule == "constant" else warm * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def _follow(average: Denoiser, student: Denoiser, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(student.parameters()), 1 - decay)


def _evaluate(
    monitor: Monitor, distiller: Distiller, average: Denoiser, step: int, seconds: float, accelerator: Accelerator
) -> None:
    """Held-out Frechet distances at every number of steps, a grid of samples, one line of `history.jsonl`."""
    times = distiller.candidate_times()[0]
    counts = distiller.step_counts(times)
    distances = {f"{n}": monitor.distance(average, times[:n] if n < len(times) else times) for n in counts}
    rows = {f"student, {n} steps": (average, times[:n]) for n in counts}
    rows |= {name: (denoiser, times[:1]) for name, denoiser in distiller.pictured().items()}
    picture = monitor.grid(step, rows)
    record = {"step": step, "seconds": round(seconds, 2), "held_out_frechet": distances}
    append_history(monitor.folder / "history.jsonl", record)
    tqdm.write(
        f"step {step}: held-out Frechet distance to the teacher "
        + ", ".join(f"{d:.3f} ({n} steps)" for n, d in distances.items())
    )
    for tracker in accelerator.trackers:
        tracker.log({f"held_out_frechet/{n}": d for n, d in distances.items()}, step=step)
        if tracker.name == "tensorboard":
            tracker.writer.add_image("samples", picture, step)


def _best_times(monitor: Monitor, distiller: Distiller, average: Denoiser) -> list[float]:
    """The candidate times with the smallest held-out distance; the first where there is no choice."""
    candidates = distiller.candidate_times()
    if len(candidates) == 1:
        return candidates[0]
    scored = [
        (monitor.distance(average, times), times) for times in tqdm(candidates, desc="choosing the second step's time")
    ]
    for distance, times in scored:
        print(f"times {', '.join(f'{t:.3f}' for t in times)} rad: held-out Frechet distance {distance:.3f}")
    return min(scored)[1]


def _log(accelerator: Accelerator, logs: dict[str, list[Tensor]], step: int, bar: Any) -> None:
    """The interval's means, gathered over processes: the only place in the loop where the host waits for the device."""
    means = {key: torch.stack([v.float() for v in values]).mean() for key, values in logs.items()}
    values = {key: accelerator.reduce(value, "mean").item() for key, value in means.items()}
    logs.clear()
    accelerator.log(values, step=step)
    bar.set_postfix(
        {key.split("/")[1]: f"{v:.3g}" for key, v in values.items() if key.startswith("student/") and "loss" in key}
    )


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a YAML recipe, see recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key, for example train.steps=500")
    args = parser.parse_args()
    train(load(args.recipe, args.overrides))


if __name__ == "__main__":
    speak(command)
