"""The data of a recipe, opened and checked before any weights are loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.config.sections import DataRecipe
from distill.data.hf_datasets import HFImages, is_hf_source
from distill.data.images import ImageFolder, Images
from distill.data.latents import EmbeddedLatents, Latents
from distill.data.source_images import open_source_images
from distill.data.stored_latents import StoredLatents
from teachers.loading.embedded import EMBEDDED
from teachers.loading.prompts import read_prompts
from teachers.media import Image, Medium
from teachers.support.text import agree, counted


@dataclass(frozen=True)
class Plan:
    """Checked data that is not encoded yet.

    Attributes:
        prompts: The prompts, if there are no samples.
        images: Images, clips or sounds with captions.
        latents: Ready-made latents with captions.
        notes: Sentences for the user about the data.
        targets: Whether the edited images of rows with source images are encoded.
        medium: The medium of the teacher's samples.
    """

    prompts: Sequence[str] = ()
    images: Images | None = None
    latents: Latents | None = None
    notes: Sequence[str] = ()
    targets: bool = True
    medium: type[Medium] = Image

    @property
    def captions(self) -> Sequence[str]:
        """One caption for each row; empty for `images`, whose captions are encoded with them."""
        return self.prompts if self.latents is None else self.latents.captions

    def summary(self) -> str:
        """A short description of the data."""
        if self.images is not None:
            return f"captioned {self.medium.plural}"
        kind = "prompts" if self.latents is None else f"rows of {self.latents.title}"
        return f"{len(self.captions):,} {kind}"


def plan(
    recipe: DataRecipe,
    needs_latents: bool,
    captioned: bool,
    medium: type[Medium] = Image,
    source: Sequence[str] = (),
) -> Plan:
    """Open and check a recipe's data, without a teacher.

    Args:
        recipe: The recipe's `data` section.
        needs_latents: Whether the method learns from images, clips or sounds.
        captioned: Whether every row needs a caption, as for teachers with prompts.
        medium: The medium of the teacher's samples.
        source: The family's `source`.

    Returns:
        The checked data.

    Raises:
        ValueError: If the data is missing or cannot be used, with the key.
    """
    if source:
        images = open_source_images(recipe, masked=len(source) > 1, targets=needs_latents)
        return Plan(images=images, notes=images.notes, targets=needs_latents)
    if recipe.images in EMBEDDED:
        embedded = EMBEDDED[recipe.images]
        if medium.name != embedded.medium:
            raise ValueError(
                f"data.images must be a folder or a dataset of {medium.plural} for this teacher, got '{embedded.name}'"
            )
        return Plan(latents=EmbeddedLatents(embedded, recipe.limit), notes=_unused_prompts(recipe, "images"))
    if recipe.latents is not None:
        stored = StoredLatents(Path(recipe.latents), captioned, recipe.limit)
        notes = _unused_prompts(recipe, "latents")
        return Plan(latents=stored, notes=notes) if needs_latents else Plan(stored.captions, notes=notes)
    if recipe.images is not None:
        images = open_images(recipe, captioned, medium)
        notes = [*_unused_prompts(recipe, "images"), *images.notes]
        if needs_latents:
            return Plan(images=images, notes=notes, medium=medium)
        return _captions_plan(recipe, images, captioned, notes, medium)
    if needs_latents:
        raise ValueError(
            f"data.images must be set for this method, for example to a folder of {medium.plural} with captions"
        )
    if recipe.prompts is None:
        if captioned:
            raise ValueError(
                "data.prompts must be set for this teacher, for example to a text file with one prompt per line"
            )
        return Plan([""])
    return Plan(read_prompts(recipe.prompts, recipe.column)[: recipe.limit or None])


def _captions_plan(recipe: DataRecipe, images: Images, captioned: bool, notes: list[str], medium: type[Medium]) -> Plan:
    """The captions of images, clips or sounds as prompts, for methods that learn from prompts alone."""
    captions = list(images.captions())
    used = [caption or "" for caption in captions if caption is not None or not captioned]
    if not used:
        raise ValueError(f"data.images {recipe.images} must have at least one caption, got none")
    if missing := len(captions) - len(used):
        samples = counted(missing, medium.noun, medium.plural)
        notes = [*notes, f"{samples} without a caption {agree(missing, 'are not used')}"]
    return Plan(used, notes=notes)


def _unused_prompts(recipe: DataRecipe, used: str) -> list[str]:
    """A note on prompts that are not used, because the data has captions; empty if there are none."""
    source = getattr(recipe, used)
    if recipe.prompts in (None, source):
        return []
    return [f"data.prompts {recipe.prompts} is not used, because the captions of data.{used} are the prompts"]


def open_images(recipe: DataRecipe, captioned: bool, medium: type[Medium] = Image) -> Images:
    """The images, clips or sounds of a recipe, opened and checked without reading all of them.

    Args:
        recipe: The recipe's `data` section, with `images`.
        captioned: Whether captions are needed.
        medium: Their medium.

    Raises:
        ValueError: If they cannot be opened, or have no captions.
    """
    assert recipe.images is not None
    if is_hf_source(recipe.images, medium):
        return HFImages(recipe.images, captioned, recipe.column, recipe.streaming, recipe.limit, medium)
    if recipe.streaming or recipe.column:
        raise ValueError(
            "data.streaming and data.column need .parquet files, .tar files or a dataset on the Hub, "
            f"got data.images {recipe.images}"
        )
    return ImageFolder(Path(recipe.images), captioned, recipe.limit, medium)
