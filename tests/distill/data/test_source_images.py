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
from distill.data.dataset import prepare
from distill.data.plan import plan
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
@pytest.mark.first_is_quick
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


def test_one_caption_of_two_images_is_said(tmp_path):
    for name in ("a.png", "a.jpg", "b.png"):
        picture("red").save(tmp_path / name)
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("a photo")
    (note,) = opened(tmp_path, INPAINT).notes
    assert note.startswith("1 caption file in") and "names differ in their endings only" in note
    assert "a.txt" in note and "b.txt" not in note
    assert list(plan(DataRecipe(images=str(tmp_path)), True, True).notes) == [note]


def test_masks_are_read_from_files(tmp_path):
    folder = write_folder(tmp_path / "data", [{"image": "a.png", "mask": "b.png", "text": "x"}], ("red", "white"))
    (row,) = read_source_rows(folder, masked=True)
    assert read_source(row.image, row.mask, (4, 8, 8))[3].eq(1).all()


def test_random_masks_are_the_same_for_a_file_and_its_contents(tmp_path):
    picture("red").save(tmp_path / "a.png")
    sources = tmp_path / "a.png", (tmp_path / "a.png").read_bytes()
    first, second = (read_source(source, None, (4, 32, 32))[3] for source in sources)
    assert torch.equal(first, second)


def test_masks_of_another_size_cover_their_image_and_of_another_aspect_ratio_are_refused(tmp_path):
    """The white right half of a mask is the red right half of its image, whatever their sizes."""
    image, mask = picture("blue", (40, 32)), picture("black", (80, 64))
    image.paste("red", (20, 0, 40, 32))
    mask.paste("white", (40, 0, 80, 64))
    for name, drawn in (("image", image), ("mask", mask), ("wide", mask.resize((40, 16)))):
        drawn.save(tmp_path / f"{name}.png")
    source = read_source(tmp_path / "image.png", tmp_path / "mask.png", (4, 16, 16))
    assert torch.equal(source[3] == 1, source[0] > 0)
    message = r"wide\.png must have the aspect ratio of its image \S+image\.png, 40 x 32 pixels, got 40 x 16 pixels"
    with pytest.raises(ValueError, match=message):
        read_source(tmp_path / "image.png", tmp_path / "wide.png", (4, 16, 16))


@pytest.mark.parametrize("stored", [True, False])
def test_an_unreadable_mask_is_named(tmp_path, stored):
    picture("red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    mask = tmp_path / "b.png" if stored else b"broken"
    name = r"\S+b\.png" if stored else r"the mask of row 3"
    with pytest.raises(ValueError, match=rf"^{name} cannot be read as an image"):
        read_source(tmp_path / "a.png", mask, (4, 16, 16), "row 3")


def test_an_empty_cell_of_a_table_is_no_file(tmp_path):
    folder = write_folder(tmp_path / "data", [], ("red", "white"))
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("image,mask,text\na.png,b.png,x\na.png,,y\n")
    assert [row.mask and row.mask.name for row in read_source_rows(folder, masked=True)] == ["b.png", None]


@pytest.mark.parametrize(("source", "rows"), [(EDIT, "a.png,b.png,x\na.png,b.png,\n"), (INPAINT, "a.png,b.png,\n")])
def test_empty_instructions_are_said(tmp_path, source, rows):
    folder = write_folder(tmp_path / "data", [], ("red", "white"))
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("original_image,edited_image,edit_prompt\n" + rows)
    (note,) = opened(folder, source).notes
    assert note.startswith("1 source image has an empty instruction or caption: ") and "metadata.csv, line" in note


def test_a_message_shows_the_beginning_of_a_long_value(tmp_path):
    folder = write_folder(tmp_path / "data", [{"original_image": "a" * 10_000, "text": "x"}])
    with pytest.raises(ValueError, match="original_image must be the name of an image") as error:
        read_source_rows(folder, masked=False)
    assert len(str(error.value)) < 500 + len(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["InstructPix2Pix", "inpainting"])
@pytest.mark.first_by_default
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
