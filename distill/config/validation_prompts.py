"""Checks of `evaluation.validation_prompts` that depend on the teacher or on the training loop."""

from distill.config.evaluation_section import EvaluationRecipe
from teachers.core.teacher import Teacher


def check_validation_prompts(
    evaluation: EvaluationRecipe,
    evaluate_every: int,
    teacher: Teacher | type[Teacher] | None,
    path: str | None = None,
) -> None:
    """Check that validation samples can be drawn and will be drawn, if a recipe has validation prompts.

    Args:
        evaluation: The recipe's `evaluation` section.
        evaluate_every: The recipe's `train.evaluate_every`.
        teacher: A teacher in memory, or the family of the pipeline at `path`; None: not known yet.
        path: The recipe's `teacher.path`.

    Raises:
        ValueError: If they cannot or will not be drawn.
    """
    if not evaluation.validation_prompts:
        return
    if not (evaluation.validation_every or evaluate_every):
        raise ValueError(
            "evaluation.validation_every must be at least 1 with train.evaluate_every=0: no sample of "
            "evaluation.validation_prompts would be drawn"
        )
    if teacher is None:
        return
    prompted = teacher.prompted if isinstance(teacher, Teacher) else teacher.takes_prompts(path)
    if not prompted:
        raise ValueError(
            "evaluation.validation_prompts must be empty: this teacher takes no prompts; the grids in samples/ show "
            "its samples"
        )
    if teacher.source:
        raise ValueError(
            "evaluation.validation_prompts must be empty: they are not available for a teacher with source images, "
            "which needs an image for each prompt; the grids in samples/ show rows of the data"
        )
