"""Rows of a recipe's data for teachers with source images, from a folder."""

from pathlib import Path

from distill.config.sections import DataRecipe
from distill.data.hf_datasets import HFImages, is_hf_source
from distill.data.images import ImageFolder, Images, ListedImages, Row
from distill.data.splits import in_training_folders
from teachers.loading.embedded import EMBEDDED
from teachers.loading.sources import SourceRow, has_metadata, read_source_rows
from teachers.media import Image
from teachers.support.text import agree, counted, first_names, printable


class SourceFolder(ListedImages):
    """A folder of source images with instructions, and of edited images if the method learns from them.

    Args:
        folder: The folder; see `teachers.loading.sources`. For inpainting it may also be one of images with captions,
            as for other teachers (`ImageFolder`).
        masked: Whether the teacher takes masks.
        targets: Whether every row must have an edited image.
        limit: Number of rows that are used, from the first; 0: all.

    Raises:
        ValueError: If a row has no instruction or lacks an image, or an image is not readable.
    """

    def __init__(self, folder: Path, masked: bool, targets: bool, limit: int = 0) -> None:
        if not folder.exists():
            raise ValueError(f"the folder of source images {folder} does not exist")
        captioned = masked and not has_metadata(folder)
        rows, notes = _captioned(folder, limit) if captioned else (read_source_rows(folder, masked), [])
        training = set(in_training_folders([row.image for row in rows], folder))
        used = [row for row in rows if row.image in training]
        found, row_keys = [], []
        for row in used[: limit or None]:
            if row.prompt is None:
                raise ValueError(f"{row.name}: every row must have an instruction as edit_prompt, or a caption as text")
            if targets and row.target is None:
                raise ValueError(
                    f"{row.name}: this method needs edited images; every row must have one as edited_image"
                )
            for file in {row.image, row.mask or row.image, row.target or row.image}:
                Image.check(file)
            found.append(Row(row.name, row.prompt, row.target, (row.image, row.mask)))
            row_keys.append(row.content())
        apart = len(rows) - len(used)
        notes += [
            f"{counted(apart, 'image')} of {printable(folder)} {agree(apart, 'are not used')} "
            "(not in its folders for training)"
        ] * bool(apart)
        empty = [row.name for row in found if row.caption == "" and not captioned]
        predicate = agree(len(empty), "have an empty instruction or caption")
        notes += [f"{counted(len(empty), 'source image')} {predicate}: {first_names(empty)}"] * bool(empty)
        super().__init__(found, row_keys, notes)


def open_source_images(recipe: DataRecipe, masked: bool, targets: bool) -> Images:
    """The source images of a recipe, opened and checked without reading all of them.

    Args:
        recipe: The recipe's `data` section.
        masked: Whether the teacher takes masks.
        targets: Whether the method learns from edited images.

    Raises:
        ValueError: If there are none, or they cannot be opened.
    """
    for name, value in (("latents", recipe.latents), ("prompts", recipe.prompts)):
        if value is not None:
            raise ValueError(
                f"data.{name} must be null for a teacher with source images, got {value!r}; set data.images"
            )
    if recipe.images is None or recipe.images in EMBEDDED:
        raise ValueError(
            "data.images must be a folder or a dataset of source images with instructions for this teacher, got "
            f"{'null' if recipe.images is None else repr(recipe.images)}"
        )
    if is_hf_source(recipe.images):
        columns = (masked, targets)
        return HFImages(recipe.images, True, recipe.column, recipe.streaming, recipe.limit, source_columns=columns)
    if recipe.streaming or recipe.column:
        raise ValueError(
            "data.streaming and data.column need .parquet files, .tar files or a dataset on the Hub, "
            f"got data.images {recipe.images}"
        )
    return SourceFolder(Path(recipe.images), masked, targets, recipe.limit)


def _captioned(folder: Path, limit: int) -> tuple[list[SourceRow], list[str]]:
    """Images with captions, each its own source image and target, and the notes on them."""
    images = ImageFolder(folder, captioned=True, limit=limit)
    files = [(row, row.source) for row in images.rows if isinstance(row.source, Path)]
    return [SourceRow(row.name, row.caption, file, None, file) for row, file in files], list(images.notes)
