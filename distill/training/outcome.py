"""The end of a run: whether training went wrong, and which EMA is exported.

A run has failed if its samples collapsed, or if its held-out distance ends far above its best. Then only the best EMA
is exported, and the command ends with exit code 3.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.config.recipe import Recipe
from distill.config.run_files import CHECKPOINTS, FAILED, HISTORY
from distill.training import checkpoint
from distill.training.best import best_record, load_best, save_best, score
from distill.training.engine import Engine
from distill.training.export_record import is_exported
from distill.training.full_state import full_state, load_full_state, replaced_state
from distill.training.held_out import HeldOut
from distill.training.jsonl_log import held_out_records
from distill.training.setup import checkpoints_folder
from distill.training.state import TrainState
from teachers.support.checksums import read_sealed_json, write_sealed_json
from teachers.support.errors import EXIT_FAILED

# Of the recorded runs (500 samples), healthy ones end at up to 1.5 times their best distance, collapsed ones at 40 to
# 900 times. Within that range the last EMA is exported: the distance is to the teacher's samples, and an early student
# that imitates them may be farther from real data. On the pocket teacher, the sCM student of step 300 (0.243, the best)
# has 1.85 times the teacher's distance to real images, that of step 900 (0.336) 0.80 times.
TIE = 1.5
FAR = 3.0
COLLAPSED = 0.01  # diversity relative to the teacher's: 1.0 for pocket students, 0.1 to 0.2 before their training
# A student starts as the teacher's one-step denoiser, whose samples hardly vary at high noise. In the first steps it
# counts as collapsed only if its samples vary far less than those.
FIRST_STEPS, OF_START = 100, 0.02


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        step: The training step at the end.
        exported: The step of the EMA that is exported; None if nothing is.
        problem: What went wrong, as a sentence without its end; None for a healthy run.
        fingerprint: The run's key, from `run_key`.
    """

    step: int
    exported: int | None
    problem: str | None
    fingerprint: str

    def message(self, folder: Path) -> str:
        """The error message of a failed run in `folder`."""
        result = (
            "nothing was exported" if self.exported is None else f"only the EMA of step {self.exported} was exported"
        )
        return (
            f"training of {folder} went wrong: {self.problem}; {result}. "
            "Train with a lower learning rate or other options under another name (name=...)"
        )


class RunFailed(SystemExit):
    """Training went wrong; the process ends with exit code 3."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = EXIT_FAILED
        self.message = message

    def __str__(self) -> str:
        return self.message


def is_better(record: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
    """Whether an evaluation replaces the best one.

    The untrained student of step 0 is the best only until a trained one is evaluated that is not far above it.
    """
    if best is None:
        return True
    new, old = score(record["held_out_frechet"]), score(best["held_out_frechet"])
    return new < (FAR * old if best["step"] == 0 and record["step"] > 0 else old)


def keep_best(
    recipe: Recipe, state: TrainState, held_out: HeldOut, record: Mapping[str, Any], fingerprint: str, engine: Engine
) -> None:
    """Save the EMA as the best one if its evaluation is, unless its samples collapsed.

    Every process that evaluates calls it.

    Raises:
        ValueError: If it cannot be written and train.on_failed_save is "stop".
    """
    best = _best(recipe, state, held_out, fingerprint, engine)
    if not _same(engine, is_better(record, best)):
        return
    if best is not None and _same(engine, collapse(held_out, state, state.step)):
        return
    ema = full_state(state.ema.state_dict(), engine.is_main)
    if engine.is_main:
        _save_best(recipe, ema, {**record, "fingerprint": fingerprint}, engine)


def choose_ema(state: TrainState, held_out: HeldOut, engine: Engine) -> dict[str, Any]:
    """Evaluate every EMA, and choose the one with the smallest held-out distance.

    Every process that evaluates calls it.

    Returns:
        `held_out_frechet` of the chosen one by number of steps; with several, its half-life as `ema` and the distances
        of all by half-life as `emas`.
    """
    found = [held_out.distances(state.distiller, ema) for ema in state.emas]
    scores = [score(distances) for distances in found]
    state.chosen = _same(engine, scores.index(min(scores)))
    chosen: dict[str, Any] = {"held_out_frechet": found[state.chosen]}
    if state.half_lives:
        by_half_life = {f"{half_life:g}": entry for half_life, entry in zip(state.half_lives, found, strict=True)}
        chosen |= {"ema": state.half_life, "emas": by_half_life}
    return chosen


def settle(recipe: Recipe, state: TrainState, held_out: HeldOut | None, fingerprint: str, engine: Engine) -> Outcome:
    """Judge a run and load the EMA that is exported into `state.ema`. Every process calls it.

    Args:
        recipe: The run's recipe.
        state: The state at the end; its EMA is replaced by the best one if that is exported.
        held_out: Evaluates samples; None on processes that do not evaluate.
        fingerprint: The run's key, from `run_key`.
        engine: The run's engine.

    Returns:
        The outcome, the same on every process.
    """
    outcome = Outcome(state.step, state.step, None, fingerprint)
    if held_out is not None and state.half_lives and not recipe.train.evaluate_every:
        choose_ema(state, held_out, engine)
    if held_out is not None and state.step > 0:
        outcome = _settle(recipe, state, held_out, fingerprint, engine)
    shared: Outcome = engine.from_main(outcome)
    return shared


def _settle(recipe: Recipe, state: TrainState, held_out: HeldOut, fingerprint: str, engine: Engine) -> Outcome:
    folder = checkpoints_folder(recipe)
    best = _best(recipe, state, held_out, fingerprint, engine)
    last = _last_record(recipe, state, held_out, fingerprint, engine)
    if state.half_lives:
        state.choose(_same(engine, (last or {}).get("ema", state.half_life)))
    problem = _same(engine, _problem(state, held_out, best, last))
    better = _same(engine, _ratio(held_out, best, last) > TIE)
    newer = best is not None and best["step"] > state.step  # the last checkpoint was not written
    wanted = best is not None and best["step"] != state.step
    wanted = wanted and (problem or (recipe.train.export == "best" and (better or newer)))
    ema = load_best(folder) if wanted else None
    if best is None or ema is None:
        return Outcome(state.step, None if problem else state.step, problem, fingerprint)
    state.choose(_same(engine, best.get("ema", state.half_life)))
    load_full_state(state.ema, ema)
    state.seconds = max(state.seconds, best["seconds"])
    if problem and _same(engine, collapse(held_out, state, best["step"])):
        return Outcome(
            state.step, None, f"{problem}; the samples of the best EMA (step {best['step']}) collapsed too", fingerprint
        )
    return Outcome(state.step, best["step"], problem, fingerprint)


def _best(
    recipe: Recipe, state: TrainState, held_out: HeldOut, fingerprint: str, engine: Engine
) -> dict[str, Any] | None:
    """The record of the best EMA; it is evaluated again if its distances cannot be compared with new ones.

    They cannot if the run was resumed with other features or another number of samples, for example.
    """
    folder = checkpoints_folder(recipe)
    record: dict[str, Any] | None = _same(engine, best_record(folder, fingerprint))  # others may read an earlier file
    if record is None or record.get("evaluation") == held_out.key:
        return record
    weights = load_best(folder)
    if weights is None:
        return None
    with replaced_state(state.ema, weights):
        distances = held_out.distances(state.distiller, state.ema)
    record = record | {"held_out_frechet": distances, "evaluation": held_out.key}
    engine.print(f"the best EMA, of step {record['step']}, was evaluated again, because the evaluation has changed")
    if engine.is_main:
        _save_best(recipe, weights, record, engine)
    return record


def _save_best(recipe: Recipe, ema: Mapping[str, Tensor], record: Mapping[str, Any], engine: Engine) -> None:
    """Save the best EMA. A failure ends the run only if train.on_failed_save is "stop"."""
    try:
        save_best(checkpoints_folder(recipe), ema, record)
    except ValueError as error:
        if recipe.train.on_failed_save == "stop":
            raise
        engine.print(f"warning: {error}; training continues")


def _last_record(
    recipe: Recipe, state: TrainState, held_out: HeldOut, fingerprint: str, engine: Engine
) -> dict[str, Any] | None:
    """The last evaluation that can be compared with new ones; it is repeated if its record is lost or damaged."""
    records = [
        record
        for record in held_out_records(recipe.folder / HISTORY, fingerprint)
        if record["step"] <= state.step and record.get("evaluation") == held_out.key
    ]
    last, every = records[-1] if records else None, recipe.train.evaluate_every
    due = state.step if state.step >= recipe.train.steps else state.step // max(every, 1) * every
    if not every or not _same(engine, last is None or last["step"] < due):
        return last
    engine.print(f"the EMA of step {state.step} is evaluated again: {HISTORY} has no valid record of step {due}")
    return {"step": state.step, **choose_ema(state, held_out, engine), "evaluation": held_out.key}


def _ratio(held_out: HeldOut, best: Mapping[str, Any] | None, last: Mapping[str, Any] | None) -> float:
    """The last distance over the best one; both count as the noise floor if they are below it."""
    if best is None or last is None:
        return 1.0
    end, least = (score(record["held_out_frechet"], held_out.noise_floor) for record in (last, best))
    return end / least if math.isfinite(least) else 1.0


def _problem(
    state: TrainState, held_out: HeldOut, best: Mapping[str, Any] | None, last: Mapping[str, Any] | None
) -> str | None:
    """What is wrong with the last EMA."""
    if collapsed := collapse(held_out, state, state.step):
        return collapsed
    ratio = _ratio(held_out, best, last)
    if best is None or last is None or ratio <= FAR:
        return None
    if best["step"] == 0 and last["step"] < FIRST_STEPS:
        return None  # a student is often worse than the untrained one at first
    return (
        f"the held-out Frechet distance of step {last['step']} is {ratio:.1f} times that of step {best['step']} "
        f"({_distances(last)} and {_distances(best)})"
    )


def _distances(record: Mapping[str, Any]) -> str:
    return f"{score(record['held_out_frechet']):.4g}"


def collapse(held_out: HeldOut, state: TrainState, step: int) -> str | None:
    """Say that the EMA's samples collapsed, or return None.

    Args:
        held_out: Samples the EMA.
        state: The state with the EMA.
        step: The training step of the EMA.
    """
    diversity, start = held_out.diversity(state.distiller, state.ema)
    if diversity >= COLLAPSED or (step < FIRST_STEPS and diversity >= OF_START * start):
        return None
    return f"the samples of step {step} collapsed (their variation over noise is {diversity:.2%} of the teacher's)"


def write_failure(folder: Path, outcome: Outcome) -> None:
    """Record a failed run in its folder, or remove an earlier record if the run is healthy."""
    if outcome.problem is None:
        (folder / FAILED).unlink(missing_ok=True)
        return
    write_sealed_json(folder / FAILED, asdict(outcome))


def failed_before(folder: Path, fingerprint: str) -> Outcome | None:
    """The outcome of a run that failed at its newest checkpoint, if what it exported is still there."""
    newest = checkpoint.newest_meta(folder / CHECKPOINTS)
    try:
        outcome = Outcome(**read_sealed_json(folder / FAILED))
    except (OSError, ValueError, TypeError):
        return None
    if newest is None or outcome.fingerprint != fingerprint or newest["step"] != outcome.step:
        return None
    return outcome if outcome.exported is None or is_exported(folder, fingerprint, newest["step"]) else None


def _same(engine: Engine, value: Any) -> Any:
    """The main process's value; with sharded networks every process evaluates, and all must decide alike."""
    return value if engine.sharding is None else engine.from_main(value)
