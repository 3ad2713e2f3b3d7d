"""The end of a run: judge it, export its best or last EMA, and report a failure with exit code 3."""

import sys
from pathlib import Path

from distill.config.recipe import Recipe
from distill.config.run_files import PIPELINE
from distill.data.dataset import Dataset
from distill.exporting.pipeline import export_student
from distill.training.engine import Engine
from distill.training.export_record import record_export
from distill.training.guard import Stop
from distill.training.held_out import HeldOut
from distill.training.launch import exit_code
from distill.training.outcome import Outcome, RunFailed, settle, write_failure
from distill.training.run_folder import run_key
from distill.training.state import TrainState
from distill.training.status import StoppedAfterExport
from teachers.core.teacher import Teacher

DELAYED = "the student is being exported; the process ends when it is on disk (a second signal ends it now)"


def finish(
    recipe: Recipe,
    state: TrainState,
    teacher: Teacher,
    dataset: Dataset,
    held_out: HeldOut | None,
    engine: Engine,
    identity: dict[str, str],
    requested: int = 0,
) -> Path:
    """Judge a run, and export its best or last EMA. Every process calls it.

    SIGINT and SIGTERM end the process when the export is on disk; a second one acts immediately.

    Args:
        recipe: The run's recipe.
        state: The state at the end; its EMA becomes the exported one.
        teacher: The run's teacher.
        dataset: The run's data.
        held_out: Evaluates samples; None on processes that do not evaluate.
        engine: The run's engine.
        identity: The run's fingerprint.
        requested: A signal that has arrived already; 0 for none.

    Returns:
        The folder of the exported pipeline.

    Raises:
        StoppedAfterExport: After a signal to any process; its code is that of `exit_code`.
        RunFailed: If training went wrong. The best EMA has been exported, unless its samples collapsed too.
    """
    final = recipe.folder / PIPELINE
    run = run_key(identity)
    with Stop(engine.group, DELAYED if engine.is_main else "", requested) as stop:
        outcome = settle(recipe, state, held_out, run, engine)
        if outcome.exported is not None:
            final = export_student(recipe, state, teacher, dataset, held_out, engine, outcome.exported, run)
        if engine.is_main:
            write_failure(recipe.folder, outcome)  # before the export counts: a failed run is never taken for finished
            if outcome.exported is not None:
                record_export(recipe, run, state.step, failed=outcome.problem is not None)
        engine.wait()
        number = stop.agree()
    report_failure(outcome, recipe.folder, engine.is_main)
    if number:
        engine.print(f"the student is exported: {final}")
        raise StoppedAfterExport(exit_code(number, engine.is_main))
    return final


def report_failure(outcome: Outcome, folder: Path, is_main: bool) -> None:
    """Print the error of a failed run on the main process, and raise RunFailed on every process."""
    if outcome.problem is None:
        return
    message = outcome.message(folder)
    if is_main:
        print(f"error: {message}", file=sys.stderr, flush=True)
    raise RunFailed(message)
