"""Export a run's student as a diffusers pipeline, and upload it to the Hugging Face Hub.

    fewstep export RUN [--push-to-hub OWNER/NAME [--private]] [--report runs/report]

A finished run has its pipeline already. For a run that was stopped this exports the newest checkpoint; training can
continue afterwards. If `fewstep eval` has judged the pipeline, its figures go into the model card.
"""

import dataclasses
import json
from pathlib import Path

from distill.config.recipe import SAVED, load
from distill.exporting.hub import CARD, add_evaluation, find_report, push
from distill.exporting.pipeline import PROMPTS, export_student
from distill.training import checkpoint
from distill.training.engine import Engine
from distill.training.run_folder import check_same_run, fingerprint, lock_run_folder
from distill.training.setup import build_monitor, checkpoints_folder, plan_data, prepare
from distill.training.state import TrainState


def export_run(run: Path) -> Path:
    """The pipeline of a run, exported from its newest checkpoint where that is newer than the pipeline.

    Args:
        run: A run's folder, or the folder of an exported pipeline, which is returned as it is.

    Returns:
        The pipeline's folder.

    Raises:
        ValueError: Where there is nothing to export.
    """
    if (run / "model_index.json").is_file():
        return run
    if not run.is_dir():
        raise ValueError(f"there is no run {run}; name the folder of a run")
    newest = checkpoint.newest_meta(run / "checkpoints")
    record = run / "pipeline" / "distill.json"
    if record.is_file() and (newest is None or json.loads(record.read_text())["cost"]["steps"] >= newest["step"]):
        return record.parent
    if newest is None:
        raise ValueError(f"{run} holds neither a pipeline nor a checkpoint; train first, or name another run")
    if not (run / SAVED).is_file():
        raise ValueError(f"{run} has no {SAVED}, so its checkpoint cannot be exported; train the recipe to its end")
    recipe, place = load(run / SAVED), run.resolve()
    settings = dataclasses.replace(recipe.train, tracker="none", shard_teacher=False)
    recipe = dataclasses.replace(recipe, output=str(place.parent), name=place.name, train=settings)
    plan = plan_data(recipe)
    with lock_run_folder(recipe.folder), Engine(recipe.train, recipe.folder) as engine:
        check_same_run(newest, recipe, fingerprint(recipe, plan))
        teacher, dataset = prepare(recipe, plan, engine)
        state = TrainState.build(recipe, teacher, engine)
        state.resume(checkpoints_folder(recipe), engine)
        return export_student(recipe, state, teacher, dataset, build_monitor(recipe, teacher, dataset, engine), engine)


def export_and_push(run: Path, push_to_hub: str | None, private: bool, report: Path | None) -> None:
    """Export `run`, put its evaluation into the model card, and upload it where `push_to_hub` names a model."""
    pipeline = export_run(run)
    found, readme = find_report(pipeline, report), pipeline / CARD
    readme.write_text(add_evaluation(readme.read_text(), found))
    print(f"the student's pipeline: {pipeline}")
    print("its card shows the report's figures" if found else f"its card shows no figures: run fewstep eval {run}")
    if push_to_hub:
        print(f"uploaded without {PROMPTS}: {push(pipeline, push_to_hub, private)}")


if __name__ == "__main__":
    from distill.cli import main

    main("export")
