"""The export of an untrained student, before a training whose export may be impossible."""

from distill.config.recipe import Recipe
from distill.data.dataset import Dataset
from distill.exporting.distill_json import describe
from distill.exporting.pipeline import check_export
from distill.exporting.verify import ExportMismatch
from distill.training.state import TrainState
from teachers.core.teacher import Teacher
from teachers.loading.saving import save_pipeline
from teachers.support.errors import reading
from teachers.support.files import remove
from teachers.support.plugins import OWN_PACKAGES

FOLDER = ".pipeline-rehearsal.tmp"  # in the run's folder; the next run removes it


def rehearse_export(recipe: Recipe, state: TrainState, teacher: Teacher, dataset: Dataset) -> None:
    """Export and check the untrained student of a family of another package, or of a teacher in memory.

    Families of this project have tests of their exports. The main process calls it, before the first step.

    Args:
        recipe: The run's recipe.
        state: The state before the first step.
        teacher: The run's teacher.
        dataset: The run's data, for its captions.

    Raises:
        ValueError: If the pipeline cannot be written or does not give the student's samples.
    """
    known = type(teacher).__module__.partition(".")[0] in OWN_PACKAGES
    if known and teacher.origin is not None:
        return
    distiller, student, folder = state.distiller, state.ema, recipe.folder / FOLDER
    remove(folder)
    try:
        with reading("the export of the untrained student", "does not work, so nothing is trained"):
            record = describe(recipe, teacher, distiller, student, distiller.sampling_schedules()[0], {}, "pixels")
            pipeline = teacher.pipeline(student, record["times"])
            kind = type(pipeline)
            save_pipeline(pipeline, folder)
            del pipeline
            check_export(folder, kind, teacher, student, record, dataset.captions)
    except ExportMismatch as error:
        raise ValueError(f"nothing is trained, because its export would not work: {error}") from error
    finally:
        remove(folder)
