"""Export a run's student as a diffusers pipeline, and upload it to the Hugging Face Hub.

    fewstep export RUN [OUT --format single-file] [--push-to-hub OWNER/NAME [--private]] [--report runs/report]

A finished run already has its pipeline. For a stopped run this command exports the newest checkpoint; training can
continue afterwards. If `fewstep eval` has evaluated the pipeline, the results are added to the model card.
"""

import dataclasses
from pathlib import Path
from typing import Any

from distill.config.run_files import CHECKPOINTS, PIPELINE, RECIPE
from distill.config.saved import load_saved
from distill.exporting.finish import finish, report_failure
from distill.exporting.formats import Form, check_form, convert
from distill.exporting.hub import CARD, add_evaluation, find_report, push, store_evaluation
from distill.training import checkpoint
from distill.training.engine import Engine
from distill.training.export_record import changed_since_export, export_record
from distill.training.outcome import failed_before
from distill.training.run_folder import check_same_run, fingerprint, lock_run_folder, stored_key
from distill.training.setup import build_held_out, checkpoints_folder, plan_data, prepare
from distill.training.state import TrainState
from eval.pipelines.loading import check_pipeline
from teachers.loading.location import INDEX
from teachers.loading.record import RECORD, read_record
from teachers.support.errors import reading
from teachers.support.files import atomic_write
from teachers.support.text import read_text


def export_run(run: Path) -> Path:
    """Export the newest checkpoint of a run, unless its pipeline is as new.

    Args:
        run: A run's folder, or the folder of an exported pipeline, which is returned unchanged.

    Returns:
        The pipeline's folder.

    Raises:
        ValueError: If there is nothing to export.
        StoppedAfterExport: A SystemExit with code 130 or 143: a signal arrived; the export is on disk.
        RunFailed: A SystemExit with code 3: the run failed, and only its best EMA, if any, was exported.
    """
    if (run / INDEX).is_file():
        return run  # even if it has changed, because this folder itself was named
    if not run.is_dir():
        raise ValueError(f"RUN must be the folder of a run; {run} does not exist")
    pipeline = run / PIPELINE
    with reading(run):
        newest = checkpoint.newest_meta(run / CHECKPOINTS)
        key = None if newest is None else stored_key(newest)
        failure = None if key is None else failed_before(run, key)
        exported = export_record(run, key)
        changed = changed_since_export(run, exported) if exported else []
    if failure is not None:
        report_failure(failure, run, is_main=True)
    valid = exported is not None and not changed and not exported["failed"]
    if newest is None and exported is not None and not valid:
        problem = f"has changed since its export ({changed[0]})" if changed else "comes from a run that failed"
        raise ValueError(
            f"{pipeline} {problem}, and {run} has no checkpoint from which it could be exported again; to use the "
            f"pipeline as it is, name its own folder: fewstep export {pipeline}"
        )
    current = newest is None or (valid and exported is not None and exported["step"] >= newest["step"])
    if (pipeline / RECORD).is_file() and current:
        read_record(pipeline)  # it must be intact
        return pipeline
    if newest is None:
        raise ValueError(f"RUN must have a pipeline or a checkpoint; {run} has neither, so train it first")
    return _export_checkpoint(run, newest)


def _export_checkpoint(run: Path, newest: dict[str, Any]) -> Path:
    """Export the newest checkpoint of a run, whose meta record is `newest`; returns the pipeline's folder."""
    if not (run / RECIPE).is_file():
        raise ValueError(f"{run} has no {RECIPE}, so its checkpoint cannot be exported; finish the training instead")
    recipe, folder = load_saved(run / RECIPE), run.resolve()
    settings = dataclasses.replace(recipe.train, tracker="none", shard_teacher=False)
    recipe = dataclasses.replace(recipe, output=str(folder.parent), name=folder.name, train=settings)
    plan = plan_data(recipe)
    with lock_run_folder(recipe.folder), Engine(recipe.train, recipe.folder) as engine:
        identity = fingerprint(recipe, plan)
        with reading(run):
            check_same_run(newest, recipe, identity)
        teacher, dataset = prepare(recipe, plan, engine)
        state = TrainState.build(recipe, teacher, engine)
        state.resume(checkpoints_folder(recipe), engine, lambda meta: check_same_run(meta, recipe, identity))
        held_out = build_held_out(recipe, teacher, dataset, engine)
        return finish(recipe, state, teacher, dataset, held_out, engine, identity)


def export_and_push(
    run: Path,
    push_to_hub: str | None,
    private: bool,
    report: Path | None,
    out: Path | None = None,
    form: str = "diffusers",
    variant: str | None = None,
    max_shard_size: str | None = None,
) -> None:
    """Export a run, add its evaluation to the model card, write it in another form, and upload it, as requested.

    Args:
        run: A run's folder, or the folder of an exported pipeline.
        push_to_hub: The model on the Hugging Face Hub, as owner/name; None: no upload.
        private: Create the model as a private one.
        report: The folder of the report; None: search near the run.
        out: Also write the pipeline here.
        form: The form of `out`; see `distill.exporting.formats`.
        variant: "fp16": `out` in half precision.
        max_shard_size: Largest size of a file of `out`, such as "2GB".

    Raises:
        ValueError: If there is nothing to export, the report does not fit, or the upload fails.
    """
    if out is None and (form != "diffusers" or variant or max_shard_size):
        raise ValueError("--format, --variant and --max-shard-size need OUT, the file or folder to write")
    how = Form(variant == "fp16", max_shard_size)
    if out is not None:  # before the export, which may take long
        check_form(run if (run / INDEX).is_file() else run / PIPELINE, out, form, how)
    pipeline = export_run(run)
    check_pipeline(pipeline)
    card = pipeline / CARD
    with reading(card):
        evaluation = find_report(pipeline, report)
        text = add_evaluation(read_text(card), evaluation)
    with atomic_write(card, concurrent=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if evaluation:
        store_evaluation(pipeline, evaluation)
    print(f"pipeline: {pipeline}")
    print("the model card contains the evaluation" if evaluation else f"no evaluation yet: run fewstep eval {run}")
    if out is not None:
        for path in convert(pipeline, out, form, how):
            print(f"written: {path}")
    if push_to_hub:
        print(f"uploaded without its files of prompts: {push(pipeline, push_to_hub, private)}")


if __name__ == "__main__":
    from distill.cli import main

    main("export")
