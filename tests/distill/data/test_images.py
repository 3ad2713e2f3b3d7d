"""Images in all supported file formats: the same rows from each, and error messages."""

import io
import json
import sys
import tarfile

import datasets
import pyarrow as pa
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from pyarrow import parquet

from distill.config.sections import DataRecipe
from distill.data.hf_datasets import HFImages, is_hf_source
from distill.data.images import ImageFolder
from distill.data.plan import open_images, plan
from teachers.media import Image as ImageMedium
from teachers.support.images import read_for_training

MEDIUM = ImageMedium(32, 32)
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
@pytest.mark.first_is_quick
def test_datasets_have_the_rows_of_the_folder(tmp_path, kind, streaming):
    folder = ImageFolder(tmp_path / "images", True) if write_images(tmp_path / "images", "folder") else None
    before = {path for path in tmp_path.rglob("*")}
    source = write_images(tmp_path / "set", kind)
    images = open_images(DataRecipe(images=source, streaming=streaming), True)
    assert isinstance(images, HFImages)
    for actual, expected in zip(rows_of(images), rows_of(folder), strict=True):
        assert actual.caption == expected.caption
        assert torch.equal(actual.read(MEDIUM).values, expected.read(MEDIUM).values)
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
        row.read(MEDIUM)


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


@pytest.mark.parametrize("names", [("a.png", "b.txt"), ("a.npy",)], ids=["other members", "a pickle"])
def test_errors_of_archives_name_the_archive(tmp_path, names):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in names:
            content = b"\x93NUMPY\x01\x00\x36\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n"
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(ValueError, match=r"a\.tar"):
        HFImages(str(tmp_path / "a.tar"), False, None, True, 0)


def test_unreachable_hub_is_an_error(monkeypatch):
    def unreachable(*arguments, **options):
        assert options["trust_remote_code"] is False
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
    assert read_for_training(row.source, row.name).image.size == (20, 40)


def folder_of(path, names=("0.png", "1.png", "2.png")):
    for name in names:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (len(name), 40, 90)).save(file, "PNG")
    return path


ROWS = [json.dumps({"file_name": f"{i}.png", "text": text}) for i, text in enumerate(("a bag", "a boot", "a coat"))]


@pytest.mark.parametrize(
    ("content", "first"),
    [
        ("\n".join(ROWS) + "\n\n", "a bag"),
        ("\ufeff" + "\n".join(ROWS), "a bag"),
        ("\r\n".join(ROWS), "a bag"),
        ("\n".join(['{"file_name": "0.png", "text": "a\u2028bag\x85"}', *ROWS[1:]]), "a\u2028bag"),
        ("\n".join(['{"file_name": "./0.png", "prompt": "7"}', *ROWS[1:]]), "7"),
    ],
)
def test_metadata_as_people_have_it(tmp_path, content, first):
    folder_of(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(content, encoding="utf-8", newline="")
    assert list(ImageFolder(tmp_path, True).captions()) == [first, "a boot", "a coat"]


def test_metadata_csv_and_subfolders(tmp_path):
    """As in the ImageFolder of `datasets`: names are relative to the folder of their metadata file."""
    folder_of(tmp_path, ("a.png", "sub/b.png", "sub/c.PNG", "other/d.jpeg", ".hidden/e.png"))
    (tmp_path / "metadata.csv").write_bytes(b'\xef\xbb\xbffile_name,text\r\na.png,"a bag, red"\r\nsub/b.png,a boot\r\n')
    (tmp_path / "sub/metadata.jsonl").write_text('{"file_name": "c.PNG", "text": "a coat"}', encoding="utf-8")
    (tmp_path / "other/d.TXT").write_bytes("\ufeffa dress\r\n".encode())
    rows = ImageFolder(tmp_path, True).rows
    assert {str(row.source.relative_to(tmp_path)): row.caption for row in rows} == {
        "a.png": "a bag, red",
        "sub/b.png": "a boot",
        "sub/c.PNG": "a coat",
        "other/d.jpeg": "a dress",
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "x/0.png", "text": "a"}',
            r"line 1: there is no image 'x/0\.png' for this capt",
        ),
        (
            "metadata.jsonl",
            "\n".join([*ROWS, '{"file_name": "9.png", "text": "gone"}']),
            r"line 4: there is no .*9\.png",
        ),
        ("metadata.jsonl", '{"file_name": "../0.png", "text": "a"}', r"there is no image '\.\./0\.png'"),
        (
            "metadata.jsonl",
            '{"file_name": "0.png", "text": ["a", "b"]}',
            "line 1: .* must be one text, got a list of 2",
        ),
        ("metadata.jsonl", '{"file_name": "0.png", "text": 7}', "line 1: a caption must be text, got the number 7"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": {"en": "a"}}', r"must be one text, got a group \(en\)"),
        ("metadata.jsonl", "\n".join([ROWS[0], ROWS[0]]), r"line 2: this is a second caption of '0\.png'"),
        ("metadata.jsonl", '{"text": "a"}', "line 1: every line must have the name of its image"),
        ("metadata.jsonl", '{"file_name": 0, "text": "a"}', "line 1: every line must have the name of its image"),
        ("metadata.jsonl", ROWS[0], r"1\.png has no caption; write it to 1\.txt in the same folder"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "\\ud83d"}', "half of a surrogate pair"),
        ("metadata.csv", "file_name,text\n0.png,a bag, red\n", "line 2: more values than columns"),
        ("0.txt", "x" * 2**20, r"0\.txt: a prompt or caption must have at most 20,000 characters, got 1,048,576"),
    ],
)
def test_captions_that_cannot_be_used_are_errors(tmp_path, name, content, message):
    folder_of(tmp_path)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path, True)


def test_names_in_another_unicode_normalisation_are_shown_with_escapes(tmp_path):
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    folder_of(tmp_path)
    (tmp_path / "0.png").rename(tmp_path / decomposed)
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "{composed}", "text": "a"}}', encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"written caf\\xe9\.png, but the file is cafe\\u0301\.png, which looks the same"
    ):
        ImageFolder(tmp_path, True)


def test_caption_in_another_encoding_is_an_error_with_the_file(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "1.txt").write_bytes("a café".encode("cp1252"))
    with pytest.raises(ValueError, match=r"1\.txt, line 1: .* not UTF-8"):
        ImageFolder(tmp_path, True)


def test_unused_files_and_empty_captions_are_reported(tmp_path):
    folder_of(tmp_path, ("0.png", "1.png", "2.gif", "3.BMP"))
    (tmp_path / "0.txt").write_text("a bag", encoding="utf-8")
    (tmp_path / "1.txt").write_text(" \n", encoding="utf-8")
    notes = plan(DataRecipe(images=str(tmp_path)), True, True).notes
    assert notes[0].startswith("2 files in") and "2.gif" in notes[0] and "3.BMP" in notes[0]
    assert notes[1].startswith("1 image has an empty caption:") and notes[1].endswith("1.png")
    assert plan(DataRecipe(images=str(tmp_path)), False, True).notes == notes


def test_folder_without_images_says_what_it_contains(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"contains no images \(.*\); .*photos\.zip have other endings"):
        plan(DataRecipe(images=str(tmp_path)), True, True)
    with pytest.raises(ValueError, match=r"photos\.zip is a file, expected a folder of images .*; unpack it first"):
        plan(DataRecipe(images=str(tmp_path / "photos.zip")), True, True)


def test_lists_of_captions_in_tables_are_refused(tmp_path):
    table = {"image": [{"bytes": encoded(1), "path": ""}], "text": [["a", "b"]]}
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    recipe, message = DataRecipe(images=str(tmp_path / "a.parquet")), "row 0 of .* must be one text, got a list of 2"
    with pytest.raises(ValueError, match=message):
        rows_of(plan(recipe, True, True).images)
    with pytest.raises(ValueError, match=message):
        plan(recipe, False, True)
