"""`evaluation:` of a recipe."""

from dataclasses import dataclass
from pathlib import Path

from distill.config.sections import NAMES
from distill.config.typed import Checked, InvalidOption, option
from eval.config.media_names import MEDIA_FEATURES, media_feature_names
from eval.config.names import FEATURES
from teachers.loading.embedded import EMBEDDED
from teachers.loading.prompts import read_prompts
from teachers.loading.registry import feature_models
from teachers.loading.sources import has_metadata
from teachers.support.errors import suggest

MOST_PROMPTS, MOST_SEEDS = 64, 8  # of validation prompts, whose samples are drawn many times


@dataclass
class EvaluationRecipe(Checked):
    """`evaluation:` in a recipe: how the run's pipeline is evaluated by default."""

    features: str = option(
        "auto",
        f"Features of images: {', '.join(FEATURES)}, or those of a family; of clips: "
        f"{', '.join(media_feature_names('video'))}; of sounds: {', '.join(media_feature_names('audio'))}. auto: "
        'the judge of an embedded teacher for its students, else the default of the family, "pixels", "motion" or '
        '"spectrum" for those of diffusers.',
    )
    prompts: str | None = option(
        None,
        "Prompts, as data.prompts, or a folder of source images if the teacher takes them; null: the training prompts.",
    )
    validation_prompts: tuple[str, ...] = option(
        (),
        "Prompts of samples that the teacher, the student and the fake score make during training. The samples are "
        "written at full size to validation/ in the run's folder and to the tracker.",
    )
    validation_seeds: tuple[int, ...] = option(
        (0,), "Seeds of the noise of these samples: one sample for each prompt and seed.", at_least=0, at_most=2**31
    )
    validation_every: int = option(
        0, "Steps between these samples; 0: train.evaluate_every.", at_least=0, at_most=10**9
    )
    reference: str | None = option(
        None, f"Real samples: {NAMES}, an .npz of statistics, or a folder; null: the teacher's own samples."
    )

    def check(self) -> None:
        of_media = self.features.partition("=")[0] in MEDIA_FEATURES  # `Recipe` knows the medium of the teacher
        known_name = of_media or self.features in ("auto", *FEATURES)
        if not known_name and self.features not in (declared := feature_models()):
            known = (*FEATURES, *declared)
            hint = suggest(self.features, known)
            raise InvalidOption("features", f"must be one of auto, {', '.join(known)}, got {self.features!r}{hint}")
        if self.reference is not None and self.reference not in EMBEDDED and not Path(str(self.reference)).exists():
            raise InvalidOption(
                "reference", f"must be an .npz with mu and sigma or a folder of images; {self.reference} does not exist"
            )
        if self.prompts is not None and not has_metadata(Path(self.prompts)):  # of source images: see `Recipe`
            read_prompts(self.prompts)
        for name, least, most in (("validation_prompts", 0, MOST_PROMPTS), ("validation_seeds", 1, MOST_SEEDS)):
            values = list(getattr(self, name))
            if not least <= len(values) <= most:
                raise InvalidOption(name, f"must have {least} to {most} values, got {len(values)}")
            if repeated := [value for value in values if values.count(value) > 1]:
                raise InvalidOption(name, f"must have every value once, got {repeated[0]!r} more than once")
