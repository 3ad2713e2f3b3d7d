"""Folders, tables and archives of clips and sounds: what is read, skipped and noted, and in which order."""

import importlib.util
import io
import tarfile

import datasets
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from pyarrow import parquet
from torch import Tensor

from distill.config.sections import DataRecipe
from distill.data import encoding
from distill.data.encoding import Encoder, batch_size
from distill.data.images import ImageFolder
from distill.data.plan import open_images, plan
from teachers.media import Audio, Image, Video

CLIP = Video(frames=3, height=8, width=16, rate=8)
SOUND = Audio(channels=1, samples=800, rate=8000)
MEDIA = {"video": (CLIP, ".webp"), "audio": (SOUND, ".wav")}
every_medium = pytest.mark.parametrize("medium", MEDIA)


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def contents(medium, number, tmp_path) -> bytes:
    """The file of a clip or sound that is brighter or louder for larger numbers."""
    kind, ending = MEDIA[medium]
    file = tmp_path / f"made{ending}"
    sample = torch.full((1, *kind.shape), 0.1 + number / 10)
    if medium == "video":  # equal frames would be stored as one
        sample += torch.tensor([-0.05, 0, 0.05])[:, None, None]
    kind.save(sample, file)
    content = file.read_bytes()
    file.unlink()
    return content


def write_folder(folder, medium, tmp_path, count=3):
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}{MEDIA[medium][1]}").write_bytes(contents(medium, number, tmp_path))
        (folder / f"{number}.txt").write_text(f"number {number}", encoding="utf-8")
    return folder


def write_table(folder, medium, tmp_path, kind):
    folder.mkdir()
    files = [contents(medium, number, tmp_path) for number in range(3)]
    if kind == "parquet":
        column = [{"bytes": content, "path": "../../secret.wav"} for content in files]
        table = {medium: column, "text": [f"number {number}" for number in range(3)]}
        parquet.write_table(pa.table(table), folder / "a.parquet")
        return folder / "a.parquet"
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number, content in enumerate(files):
            for name, value in (
                (f"{number}{MEDIA[medium][1]}", content),
                (f"{number}.txt", f"number {number}".encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(value)
                tar.addfile(member, io.BytesIO(value))
    return folder / "a.tar"


class Teacher:
    """Encodes a clip or sound as its mean."""

    guided, prompted, origin, shape = True, True, None, (1,)

    def __init__(self, medium):
        self.medium = medium
        self.batches: list[int] = []

    def encode(self, samples: Tensor) -> Tensor:
        self.batches.append(len(samples))
        return samples.flatten(1).mean(1, keepdim=True)


def encode(images, medium, tmp_path, monkeypatch):
    teacher = Teacher(medium)
    encoder = Encoder(teacher, tmp_path / "cache", Accelerator(cpu=True), {})
    monkeypatch.setattr(encoder, "encoder_key", lambda method: repr(medium))
    captions, table = encoder.encode_images(images)
    return captions, table.gather(torch.arange(len(table)))["x"].flatten().tolist(), teacher


def rows_of(images):
    return [row for block in images.blocks(2) for row in block.read()]


@every_medium
@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.first_is_quick
def test_tables_have_the_rows_of_the_folder(medium, kind, streaming, tmp_path):
    made = MEDIA[medium][0]
    folder = rows_of(ImageFolder(write_folder(tmp_path / "files", medium, tmp_path), True, medium=type(made)))
    source = write_table(tmp_path / "table", medium, tmp_path, kind)
    recipe = DataRecipe(images=str(source), streaming=streaming)
    if (kind, medium) == ("tar", "audio") and not importlib.util.find_spec("torchcodec"):
        with pytest.raises(ValueError, match=r"reading the sounds of .* needs the package torchcodec: pip install"):
            rows_of(open_images(recipe, True, type(made)))
        return
    rows = rows_of(open_images(recipe, True, type(made)))
    assert [row.caption for row in rows] == [row.caption for row in folder] == ["number 0", "number 1", "number 2"]
    for one, two in zip(rows, folder, strict=True):
        assert torch.equal(one.read(made).values, two.read(made).values)


@every_medium
def test_files_that_cannot_be_used_are_skipped_and_notes_are_said_once(medium, tmp_path, monkeypatch, capsys):
    made, ending = MEDIA[medium]
    folder = write_folder(tmp_path / "files", medium, tmp_path, 5)
    (folder / f"1{ending}").write_bytes((folder / f"1{ending}").read_bytes()[:40])
    (folder / f"3{ending}").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    longer = Video(9, 8, 16, 8) if medium == "video" else Audio(1, 4000, 8000)
    for number in (2, 4):
        longer.save(torch.rand(1, *longer.shape), folder / f"{number}{ending}")
    monkeypatch.setattr(encoding, "SHARD", 2)
    for _ in range(2):  # and from the cache
        captions, _, _ = encode(ImageFolder(folder, True, medium=type(made)), made, tmp_path, monkeypatch)
        assert captions == ["number 0", "number 2", "number 4"]
        printed = capsys.readouterr().out.splitlines()
        skipped = next(line for line in printed if "are skipped" in line)
        assert skipped.startswith(f"2 {made.plural} are skipped because they cannot be used or have no caption: ")
        assert f"1{ending}" in skipped and f"3{ending}" in skipped
        (note,) = [line for line in printed if "only their beginning is used" in line]
        assert note.startswith(f"2 {made.plural} are longer than ") and f"4{ending}" in note


def test_a_folder_without_usable_files_says_why(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "files", "video", tmp_path, 1)
    long = Video(frames=99, height=8, width=16, rate=8)
    with pytest.raises(
        ValueError, match=r"at least one readable clip with a caption, got none; .*0\.webp is too short"
    ):
        encode(ImageFolder(folder, True, medium=Video), long, tmp_path, monkeypatch)


@every_medium
def test_values_are_those_of_the_files_in_their_order(medium, tmp_path, monkeypatch):
    made, _ = MEDIA[medium]
    images = ImageFolder(write_folder(tmp_path / "files", medium, tmp_path), True, medium=type(made))
    _, means, _ = encode(images, made, tmp_path, monkeypatch)
    expected = [0.1, 0.2, 0.3] if medium == "audio" else [-0.8, -0.6, -0.4]
    assert means == pytest.approx(expected, abs=0.02)


def test_batches_are_limited_by_their_size():
    assert batch_size(Image(512, 512)) == 64
    assert batch_size(Video(frames=81, height=480, width=832, rate=16)) == 1
    assert batch_size(Video(frames=9, height=32, width=32, rate=8)) == 64
    assert batch_size(Audio(channels=2, samples=44100 * 47, rate=44100)) == 16


@every_medium
def test_messages_have_the_words_of_the_medium(medium, tmp_path):
    made, ending = MEDIA[medium]
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"contains no {made.plural} \(.*\); .*a\.png have other endings"):
        plan(DataRecipe(images=str(tmp_path)), True, True, type(made))
    with pytest.raises(ValueError, match=f"data.images must be set .* a folder of {made.plural} with captions"):
        plan(DataRecipe(), True, True, type(made))
    with pytest.raises(ValueError, match=f"a dataset of {made.plural} for this teacher, got 'pocket'"):
        plan(DataRecipe(images="pocket"), True, True, type(made))
    (tmp_path / f"b{ending}").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"b{ending} has no caption; write it to b\.txt"):
        plan(DataRecipe(images=str(tmp_path)), True, True, type(made))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "c.x", "text": "a"}', encoding="utf-8")
    with pytest.raises(ValueError, match=rf"there is no {made.noun} 'c\.x' for this caption"):
        plan(DataRecipe(images=str(tmp_path)), True, True, type(made))


def test_a_plan_names_its_medium(tmp_path):
    folder = write_folder(tmp_path / "files", "audio", tmp_path)
    assert plan(DataRecipe(images=str(folder)), True, True, Audio).summary() == "captioned sounds"
