"""Rows of source images, instructions and edited images: folders, tables, masks and their encoding."""

import io
import json

import datasets
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from pyarrow import parquet

from distill.config.recipe import Recipe
from distill.config.registry import TEACHERS, find
from distill.config.sections import DataRecipe, TeacherRecipe
from distill.data.dataset import plan, prepare
from teachers.loading.sources import read_source, read_source_rows

CPU = torch.device("cpu")
EDIT, INPAINT = ("image",), ("image", "mask_image")


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """The cache of `datasets` is a folder of the tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def picture(color, size=(20, 16)):
    return Image.new("RGB", size, color)


def write_folder(folder, rows, colors=("red", "blue")):
    """Images a.png, b.png, ... of the colors, and metadata.jsonl with the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, color in zip("abcdefgh", colors, strict=False):
        picture(color).save(folder / f"{name}.png")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def opened(images, source=EDIT, latents=True, **settings):
    return plan(DataRecipe(images=str(images), **settings), latents, True, source=source).images


@pytest.mark.parametrize(
    "names",
    [
        ("original_image", "edited_image", "edit_prompt"),
        ("input_image", "edited_image", "edit_prompt"),
        ("original_image_file_name", "edited_image_file_name", "edit_prompt"),
        ("source_image", "file_name", "text"),
    ],
)
def test_folders_have_the_columns_of_published_data_sets(tmp_path, names):
    folder = write_folder(tmp_path / "data", [dict(zip(names, ("a.png", "b.png", "make it blue"), strict=True))])
    (row,) = next(opened(folder).blocks(8)).read()
    assert (row.source.name, row.sources[0].name, row.caption) == ("b.png", "a.png", "make it blue")


@pytest.mark.parametrize("streaming", [False, True])
def test_tables_have_the_columns_of_instructpix2pix_clip_filtered(tmp_path, streaming):
    columns = {}
    for name, color in (("original_image", "red"), ("edited_image", "blue")):
        stream = io.BytesIO()
        picture(color).save(stream, "PNG")
        columns[name] = [{"bytes": stream.getvalue(), "path": None}] * 3
    columns |= {
        "original_prompt": ["x"] * 3,
        "edit_prompt": [f"number {i}" for i in range(3)],
        "edited_prompt": ["y"] * 3,
    }
    parquet.write_table(pa.table(columns), tmp_path / "train.parquet")
    images = opened(tmp_path / "train.parquet", streaming=streaming)
    rows = [row for block in images.blocks(2) for row in block.read()]
    assert [row.caption for row in rows] == ["number 0", "number 1", "number 2"] == list(images.captions())
    assert read_source(rows[0].sources[0], None, (3, 8, 8)).mean((1, 2)).tolist() == [1.0, -1.0, -1.0]
    assert rows[0].source != rows[0].sources[0]
    assert next(opened(tmp_path / "train.parquet", latents=False).blocks(2)).read()[0].source is None


@pytest.mark.parametrize(
    ("rows", "source", "message"),
    [
        ([{"original_image": "a.png", "edited_image": "b.png"}], EDIT, "line 1: every row must have an instruction"),
        ([{"original_image": "a.png", "text": "x"}], EDIT, "this method needs edited images; every row must have one"),
        ([{"edited_image": "a.png", "text": "x"}], EDIT, "every row must have a source image as original_image"),
        ([{"original_image": "../a.png", "text": "x"}], EDIT, "original_image must be the name of an image relative"),
        ([{"original_image": "a.png", "mask": "z.png", "text": "x"}], INPAINT, "mask must be the name of an image"),
        ([], EDIT, r"must have metadata\.jsonl with a row for each source image"),
    ],
)
def test_incomplete_rows_are_errors(tmp_path, rows, source, message):
    with pytest.raises(ValueError, match=message):
        opened(write_folder(tmp_path / "data", rows), source)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"data\.images must be a folder or a dataset of source images .* got null"),
        ({"prompts": "pocket"}, r"data\.prompts must be null for a teacher with source images"),
        ({"images": "pocket"}, r"data\.images must be a folder or a dataset of source images .* got 'pocket'"),
    ],
)
def test_other_data_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        plan(DataRecipe(**settings), False, True, source=EDIT)


def test_inpainting_takes_captioned_images_with_masks_that_depend_on_their_contents(tmp_path):
    for name, color in (("a", "red"), ("b", "blue"), ("c", "red")):
        picture(color).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("a photo")
    rows = next(opened(tmp_path, INPAINT).blocks(8)).read()
    assert all(row.source == row.sources[0] for row in rows)
    masks = [read_source(*row.sources, (4, 32, 32))[3] for row in rows]
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])
    assert all(set(mask.unique().tolist()) == {0.0, 1.0} and 0.06 <= mask.mean() <= 0.57 for mask in masks)


def test_masks_are_read_from_files(tmp_path):
    folder = write_folder(tmp_path / "data", [{"image": "a.png", "mask": "b.png", "text": "x"}], ("red", "white"))
    (row,) = read_source_rows(folder, masked=True)
    assert read_source(row.image, row.mask, (4, 8, 8))[3].eq(1).all()


@pytest.mark.parametrize("name", ["InstructPix2Pix", "inpainting"])
def test_stored_conditions_are_those_of_each_row(name, tiny_source, tmp_path):
    """They are encoded once, and again only if a source image or an instruction changes."""
    family, folder = tiny_source(name)
    recipe = Recipe("run", TeacherRecipe(str(folder), family), {"name": "scm"}, output=str(tmp_path / "runs"))
    row = {"original_image": "a.png", "edited_image": "b.png"}
    rows = [
        {**row, "edit_prompt": "one"},
        {**row, "edit_prompt": "two"},
        {**row, "original_image": "c.png", "text": "one"},
    ]
    kind = find(TEACHERS, family)

    def encoded(rows, colors=("red", "blue", "green")):
        data = DataRecipe(images=str(write_folder(tmp_path / "data", rows, colors)))
        teacher = kind.load(str(folder), CPU)
        before = set((tmp_path / "runs").rglob("*.safetensors"))
        dataset = prepare(plan(data, True, True, source=kind.source), teacher, recipe, Accelerator(cpu=True))
        return dataset, teacher, len(set((tmp_path / "runs").rglob("*.safetensors")) - before)

    dataset, teacher, written = encoded(rows)
    assert written == 2  # the rows and the empty prompt
    shape = teacher.source_shape
    sources = torch.stack([read_source(tmp_path / "data" / f"{n}.png", None, shape) for n in "aac"])
    cond, stored = teacher.source_condition(["one", "two", "one"], sources), dataset.cond.gather(torch.arange(3))
    assert all(torch.allclose(stored[key], cond[key], atol=1e-6) for key in cond)
    assert dataset.captions == ["one", "two", "one"]
    target = teacher.encode(read_source(tmp_path / "data" / "b.png", None, (3, 16, 16))[None])
    assert torch.allclose(dataset.latents.gather(torch.tensor([2]))["x"], target, atol=1e-6)
    again, _, written = encoded(rows)
    assert written == 0
    assert again.sources == dataset.sources
    changed, _, written = encoded(rows, ("yellow", "blue", "green"))
    assert written == 1
    assert changed.sources != dataset.sources
