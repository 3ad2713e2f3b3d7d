"""The export of an untrained student, before a training whose export may be impossible."""

from distill.config.recipe import Recipe
from distill.data.dataset import Dataset
from distill.exporting.distill_json import describe
from distill.exporting.pipeline import write_and_check
from distill.exporting.verify import ExportMismatch
from distill.training.state import TrainState
from teachers.core.teacher import Teacher
from teachers.support.errors import reading
from teachers.support.files import remove
from teachers.support.plugins import is_own_class

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
    if is_own_class(type(teacher)) and teacher.origin is not None:
        return
    distiller, student, folder = state.distiller, state.ema, recipe.folder / FOLDER
    remove(folder)
    try:
        with reading("the export of the untrained student", "does not work, so nothing is trained"):
            record = describe(recipe, teacher, distiller, student, distiller.sampling_schedules()[0], {}, "pixels")
            write_and_check(folder, teacher, student, record, dataset.captions, safety_checker=False)
    except ExportMismatch as error:
        raise ValueError(f"nothing is trained, because its export would not work: {error}") from error
    finally:
        remove(folder)
