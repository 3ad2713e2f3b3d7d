"""Sources of images: which files of a folder are read, and sources that could be misread are errors."""

import io

import datasets
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from distill.config.recipe import DataRecipe
from distill.data.dataset import open_images, plan


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """The cache of `datasets` is a folder of the tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def write_table(file, captions):
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "blue").save(content, "PNG")
    parquet.write_table(pa.table({"image": [content.getvalue()] * len(captions), "text": captions}), file)


def captions_of(source):
    return list(open_images(DataRecipe(images=str(source)), True).captions())


@pytest.mark.parametrize("name", ["x.parquet", "metadata.parquet", "old.tar"])
def test_folder_with_images_and_tables_is_an_error(tmp_path, name):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    write_table(tmp_path / name, ["a coat"])
    with pytest.raises(ValueError, match=rf"must hold images or \.parquet or \.tar files, but has images and {name}"):
        captions_of(tmp_path)


def test_hidden_tables_are_not_read(tmp_path):
    write_table(tmp_path / "a.parquet", ["a coat"])
    (tmp_path / "._a.parquet").write_bytes(b"\0\5\x16\7")
    assert captions_of(tmp_path) == ["a coat"]


@pytest.mark.parametrize("name", ["a[1].parquet", "[1]/a.parquet"])
def test_brackets_in_names_are_no_patterns(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    write_table(file, ["a coat"])
    assert captions_of(file) == ["a coat"]


def test_folder_may_have_the_name_of_a_table(tmp_path):
    folder = tmp_path / "set.parquet"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "a.txt").write_text("a coat")
    assert captions_of(folder) == ["a coat"]


def test_empty_name_is_not_the_current_folder():
    with pytest.raises(ValueError, match=r"data\.images must be a folder, .*, got ''"):
        captions_of("")


def test_captions_of_unguided_teachers_are_not_read(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfea\0")
    assert list(open_images(DataRecipe(images=str(tmp_path)), False).captions()) == [None]


def test_rows_without_a_caption_are_not_trained_on(tmp_path):
    write_table(tmp_path / "a.parquet", ["a coat", None, ""])
    made = plan(DataRecipe(images=str(tmp_path)), needs_latents=False, guided=True)
    assert made.captions == ["a coat", ""] and made.notes == ["1 images without a caption are not used"]
    write_table(tmp_path / "a.parquet", [float("nan")])
    with pytest.raises(ValueError, match="must have at least one caption, got none"):
        plan(DataRecipe(images=str(tmp_path)), needs_latents=False, guided=True)
