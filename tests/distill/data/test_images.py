"""Images in all supported file formats: the same rows from each, and error messages."""

import io
import sys
import tarfile

import datasets
import pyarrow as pa
import pytest
from huggingface_hub import HfApi
from PIL import Image
from pyarrow import parquet

from distill.config.recipe import DataRecipe
from distill.data.dataset import open_images, plan
from distill.data.hf_datasets import HFImages, is_hf_source
from distill.data.images import ImageFolder

WORDS = ["a coat", "an \u00e9legant bag", "a shoe", "a boot", "a dress"]


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """The cache of `datasets` is a folder of the tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def encoded(number, kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (40, 32), (50 * number, 20, 90)).save(file, kind)
    return file.getvalue()


def write_images(folder, kind):
    """Five images with captions as a folder, a parquet file, or two tar shards whose members point elsewhere."""
    images = [encoded(i) for i in range(len(WORDS))]
    if kind == "folder":
        folder.mkdir()
        for i, (image, word) in enumerate(zip(images, WORDS, strict=True)):
            (folder / f"{i}.png").write_bytes(image)
            (folder / f"{i}.txt").write_text(word, encoding="utf-8")
        return str(folder)
    folder.mkdir(exist_ok=True)
    if kind == "parquet":
        stored = {"image": [{"bytes": image, "path": "../../x.png"} for image in images], "text": WORDS}
        parquet.write_table(pa.table(stored), folder / "a.parquet")
        return str(folder / "a.parquet")
    for shard, rows in enumerate((range(3), range(3, 5))):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i in rows:
                for name, content in ((f"../../{i}.png", images[i]), (f"../../{i}.txt", WORDS[i].encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return str(folder / "*.tar")


def rows_of(images, size=2):
    return [row for block in images.blocks(size) for row in block.read()]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_datasets_have_the_rows_of_the_folder(tmp_path, kind, streaming):
    folder = ImageFolder(tmp_path / "images", True) if write_images(tmp_path / "images", "folder") else None
    before = {path for path in tmp_path.rglob("*")}
    source = write_images(tmp_path / "set", kind)
    images = open_images(DataRecipe(images=source, streaming=streaming), True)
    assert isinstance(images, HFImages)
    for actual, expected in zip(rows_of(images), rows_of(folder), strict=True):
        assert actual.caption == expected.caption
        assert actual.load().tobytes() == expected.load().tobytes()
    assert list(images.captions()) == WORDS
    identities = [block.identity for block in images.blocks(2)]
    assert len(set(identities)) == 3  # and they do not change:
    again = open_images(DataRecipe(images=source, streaming=streaming), True)
    assert identities == [block.identity for block in again.blocks(2)]
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "set", *(tmp_path / "set").iterdir()}  # nothing unpacked
    limited = open_images(DataRecipe(images=source, streaming=streaming, limit=3), True)
    assert [row.caption for row in rows_of(limited)] == WORDS[:3] == list(limited.captions())


@pytest.mark.parametrize("streaming", [False, True])
def test_paths_in_a_dataset_are_not_opened(tmp_path, streaming):
    """A table can contain paths of files on this machine; only stored bytes are used."""
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    table = pa.table({"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}], "text": ["a coat"]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    (row,) = rows_of(open_images(DataRecipe(images=str(tmp_path / "a.parquet"), streaming=streaming), True))
    with pytest.raises(ValueError, match="has no image data"):
        row.load()


@pytest.mark.parametrize(
    ("table", "recipe", "message"),
    [
        ({"image": [{"bytes": b"", "path": ""}], "words": ["a"]}, {}, "no column called text, prompt or caption; its"),
        (
            {"image": [{"bytes": b"", "path": ""}], "words": ["a"]},
            {"column": "x"},
            r"data\.column must be a column of .*\(image, words\), got 'x'",
        ),
        ({"pixels": [1], "text": ["a"]}, {}, "must have a column of images; its columns are pixels, text"),
    ],
)
def test_missing_columns_are_errors_with_the_existing_columns(tmp_path, table, recipe, message):
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        plan(DataRecipe(images=str(tmp_path / "a.parquet"), **recipe), True, True)


def test_caption_column_can_be_chosen(tmp_path):
    table = {"image": [{"bytes": encoded(1), "path": ""}], "words": ["a coat"]}
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    recipe = DataRecipe(images=str(tmp_path / "a.parquet"), column="words")
    assert plan(recipe, False, True).captions == ["a coat"]
    assert plan(DataRecipe(images=str(tmp_path / "a.parquet")), False, False).captions == [
        ""
    ]  # without prompts no column is needed


@pytest.mark.parametrize("source", ["gone.parquet", "gone/*.tar"])
def test_missing_files_are_errors(tmp_path, source):
    with pytest.raises(ValueError, match=r"the file of images .* does not exist"):
        plan(DataRecipe(images=str(tmp_path / source)), True, True)


def test_file_that_is_not_a_table(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"not a table")
    with pytest.raises(ValueError, match=r"the dataset .*a\.parquet cannot be read"):
        plan(DataRecipe(images=str(tmp_path / "a.parquet")), True, True)


def test_unreachable_hub_is_an_error(monkeypatch):
    def unreachable(*arguments, **options):
        assert "trust_remote_code" not in options
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    with pytest.raises(ValueError, match=r"data\.images someone/photos is not a folder, and the Hub cannot be reached"):
        plan(DataRecipe(images="someone/photos"), True, True)


def test_missing_datasets_library_is_an_error_but_folders_work(tmp_path, monkeypatch):
    source, folder = write_images(tmp_path / "set", "parquet"), write_images(tmp_path / "images", "folder")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'needs the package datasets: pip install -e "\.\[data\]"'):
        plan(DataRecipe(images=source), True, True)
    assert len(rows_of(plan(DataRecipe(images=folder), True, True).images)) == 5


@pytest.mark.parametrize(
    ("source", "known"),
    [("owner/name", True), ("./owner/name", False), ("gone", False), ("a/b/c", False), ("/a/b", False), ("a/", False)],
)
def test_names_on_the_hub_are_recognised(source, known):
    assert is_hf_source(source) == known


def test_streaming_a_folder_is_rejected(tmp_path):
    folder = write_images(tmp_path / "images", "folder")
    with pytest.raises(ValueError, match=r"data\.streaming and data\.column need"):
        plan(DataRecipe(images=folder, streaming=True), True, True)


def test_exif_rotation_is_applied(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new("RGB", (40, 20)).save(folder / "a.jpg", exif=exif)
    (row,) = ImageFolder(folder, False).rows
    assert row.load().size == (20, 40)
