"""Source images that are stored with a pipeline, so that it can be evaluated without the data of its training."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from torch import Tensor

from distill.config.recipe import Recipe
from distill.data.source_images import open_source_images
from teachers.core.teacher import Teacher
from teachers.loading.sources import read_source, read_source_rows
from teachers.media.pictures import to_pil

EVALUATION_SOURCES = "evaluation_sources"  # in the pipeline's folder
MOST = 64  # rows that are stored
READ = 64  # rows of the data that are read at once


def evaluation_sources(recipe: Recipe, teacher: Teacher) -> Iterator[tuple[str, Tensor]]:
    """The first instructions and source images (*teacher.source_shape) of evaluation.prompts, or of the data.

    Rows that cannot be read are left out: the export of a long training must not fail because of them.
    """
    return islice(_readable(recipe, teacher), MOST)


def _readable(recipe: Recipe, teacher: Teacher) -> Iterator[tuple[str, Tensor]]:
    for name, prompt, image, mask in _rows(recipe, masked=len(teacher.source) > 1):
        if prompt is None or image is None:
            continue
        try:
            yield prompt, read_source(image, mask, teacher.source_shape, name)
        except ValueError:
            continue


def _rows(recipe: Recipe, masked: bool) -> Iterator[tuple[str, str | None, Path | bytes | None, Path | bytes | None]]:
    if recipe.evaluation.prompts is not None:
        for source in read_source_rows(Path(recipe.evaluation.prompts), masked):
            yield source.name, source.prompt, source.image, source.mask
        return
    for block in open_source_images(recipe.data, masked, targets=False).blocks(READ):
        for row in block.read():
            yield row.name, row.caption, *row.sources


def write_sources(rows: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """Write instructions and source images as `fewstep eval --prompts` reads them.

    Args:
        rows: Instructions and source images in [-1, 1], with a mask in {0, 1} if there is one.
        folder: A new folder.
    """
    folder.mkdir()
    lines = []
    for number, (prompt, source) in enumerate(rows):
        files = {"original_image": f"{number:03d}.png"}
        to_pil(source[:3] / 2 + 0.5).save(folder / files["original_image"])
        if len(source) > 3:
            files["mask"] = f"{number:03d}-mask.png"
            to_pil(source[3:].expand(3, -1, -1)).save(folder / files["mask"])
        lines.append(json.dumps({**files, "edit_prompt": prompt}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
