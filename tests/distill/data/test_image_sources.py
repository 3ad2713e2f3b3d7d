"""Sources of images: which files of a folder are read, and sources that could be misread are errors."""

import io

import datasets
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from distill.config.sections import DataRecipe
from distill.data.plan import open_images, plan


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


@pytest.mark.parametrize("name", ["x.parquet", "old.tar"])
def test_folder_with_images_and_tables_is_an_error(tmp_path, name):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    write_table(tmp_path / name, ["a coat"])
    with pytest.raises(ValueError, match=rf"must hold images or \.parquet or \.tar files, but has images and {name}"):
        captions_of(tmp_path)


def write_image(file, color="red"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(file)


@pytest.mark.parametrize("place", ["", "train"])
def test_metadata_in_parquet_has_the_captions_of_the_images(tmp_path, place):
    """As of the imagefolder format, with images beside the table and in subfolders."""
    names = [f"{place}/{i}.png".lstrip("/") for i in range(2)]
    for name in names:
        write_image(tmp_path / name)
    table = pa.table({"file_name": names[::-1], "text": ["a bag", "a coat"], "more": [b"x", b"y"]})
    parquet.write_table(table, tmp_path / "metadata.parquet")
    assert captions_of(tmp_path) == ["a coat", "a bag"]
    assert not open_images(DataRecipe(images=str(tmp_path)), True).notes


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": ["a", "b"]}, "must have the name of its image"),
        ({"file_name": ["0.png", "gone.png"], "text": ["a", "b"]}, "there is no image 'gone.png' for this caption"),
        ({"file_name": ["0.png", "0.png"], "text": ["a", "b"]}, "this is a second caption of '0.png'"),
        ({"file_name": ["0.png", "1.png"], "text": [["a"], ["b"]]}, "must be one text, got a list of 1"),
    ],
)
def test_metadata_in_parquet_that_does_not_fit_the_images_is_refused(tmp_path, table, message):
    for i in range(2):
        write_image(tmp_path / f"{i}.png")
    parquet.write_table(pa.table(table), tmp_path / "metadata.parquet")
    with pytest.raises(ValueError, match=rf"metadata\.parquet.*{message}"):
        captions_of(tmp_path)
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 not a table")
    with pytest.raises(ValueError, match=r"metadata\.parquet is not readable as parquet"):
        captions_of(tmp_path)


SPLITS = [
    (["train.parquet", "test.parquet"], ["train.parquet"]),
    (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"], [0, 1]),
    (["my_training.v2.parquet", "my-train.parquet", "validation.parquet", "Val-1.parquet"], [0, 1]),
    (["a.parquet", "b.parquet", "eval.parquet"], ["a.parquet", "b.parquet"]),
    (["constrained.parquet", "latest.parquet", "devices.parquet"], [0, 1, 2]),
]


@pytest.mark.parametrize(("names", "used"), SPLITS)
@pytest.mark.first_is_quick
def test_only_the_training_split_of_a_folder_is_trained_on_and_this_is_said(tmp_path, names, used):
    for name in names:
        write_table(tmp_path / name, [name])
    expected = sorted(names[item] if isinstance(item, int) else item for item in used)
    for source in (tmp_path, tmp_path / "*.parquet"):
        images = open_images(DataRecipe(images=str(source)), True)
        assert list(images.captions()) == expected
        others = set(names) - set(expected)
        assert len(images.notes) == bool(others) and all(name in images.notes[0] for name in others)
    assert captions_of(tmp_path / names[-1]) == [names[-1]], "a single file is meant"


def test_a_folder_with_test_data_only_is_refused_but_can_be_named(tmp_path):
    for name in ("test-1.parquet", "test-2.parquet"):
        write_table(tmp_path / name, [name])
    with pytest.raises(ValueError, match="must have files for training"):
        captions_of(tmp_path)
    assert captions_of(tmp_path / "test-*.parquet") == ["test-1.parquet", "test-2.parquet"]


def test_only_training_folders_of_images_are_trained_on_and_this_is_said(tmp_path):
    for name in ("train/cats/0.png", "train/1.png", "test/2.png", "val/3.png", "4.png"):
        write_image(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(name)
    images = open_images(DataRecipe(images=str(tmp_path)), True)
    assert list(images.captions()) == ["train/1.png", "train/cats/0.png"]
    assert images.notes[-1].startswith("3 images of") and "not in its folders for training" in images.notes[-1]
    for name in ("test", "val"):
        (tmp_path / name).rename(tmp_path / f"{name}s")  # no name of a split
    assert len(captions_of(tmp_path)) == 5


def test_the_limit_applies_to_the_latents_of_the_pocket_teacher():
    whole, first = (plan(DataRecipe(images="pocket", limit=limit), True, True) for limit in (0, 7))
    assert len(whole.captions) > 7 and first.captions == whole.captions[:7]


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
    with pytest.raises(ValueError, match="images must be a text that is not empty, got ''"):
        captions_of("")


def test_captions_of_unguided_teachers_are_not_read(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfea\0")
    assert list(open_images(DataRecipe(images=str(tmp_path)), False).captions()) == [None]


def test_rows_without_a_caption_are_not_trained_on(tmp_path):
    write_table(tmp_path / "a.parquet", ["a coat", None, ""])
    made = plan(DataRecipe(images=str(tmp_path)), needs_latents=False, captioned=True)
    assert made.captions == ["a coat", ""] and made.notes == ["1 image without a caption is not used"]
    write_table(tmp_path / "a.parquet", [float("nan")])
    with pytest.raises(ValueError, match="must have at least one caption, got none"):
        plan(DataRecipe(images=str(tmp_path)), needs_latents=False, captioned=True)
