"""Limits: small files that would take much memory or time are refused in one sentence, which says how to allow more."""

import io
import json
import resource
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from distill.config.sections import DataRecipe
from distill.data.images import ImageFolder
from distill.data.plan import open_images
from eval.features.extractors import extractor
from eval.features.image_folder import read_batches, read_image
from eval.metrics.reference import reference
from teachers.loading.prompts import read_prompts
from teachers.support import images
from teachers.support.images import read_as_clean_fid, read_for_training
from teachers.support.json_files import parse_json, read_json
from teachers.support.limits import Limit
from teachers.support.yaml_files import parse_value, read_yaml
from tests.forks import Fork


def png(width, height, depth=1, extra=b""):
    """A PNG of zeros, whose pixels are never in memory here."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width * depth // 8 + 2)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_limit_is_read_from_its_environment_variable(monkeypatch):
    limit = Limit("FEWSTEP_MAX_TEST", 5)
    assert limit.value == 5
    monkeypatch.setenv("FEWSTEP_MAX_TEST", "1_000")
    assert limit.value == 1000
    for wrong in ("0", "-1", "many", "1e9", "9" * 30):
        monkeypatch.setenv("FEWSTEP_MAX_TEST", wrong)
        with pytest.raises(ValueError, match="FEWSTEP_MAX_TEST must be a whole number of at least 1"):
            _ = limit.value


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.webp", "a.tif", "a.bmp", "a.jpg", "a.ppm", "a.npy"])
def test_pixels_are_counted_before_decoding_in_training_and_evaluation(tmp_path, monkeypatch, name):
    file = tmp_path / name
    if name == "a.npy":
        np.save(file, np.zeros((60, 50, 3), np.uint8))
    else:
        Image.new("RGB", (50, 60)).save(file)
    assert read_as_clean_fid(file).size == (50, 60)
    monkeypatch.setenv("FEWSTEP_MAX_IMAGE_PIXELS", "2999")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    sources = [file] if name == "a.npy" else [file, file.read_bytes()]  # rows of tables have bytes
    readers = [lambda source=source: read_for_training(source, name) for source in sources]
    for read in (
        *readers,
        lambda: read_as_clean_fid(file),
        lambda: read_image(file),
        lambda: next(read_batches([file], 1)),
    ):
        with pytest.raises(ValueError, match=r"is 50 x 60 pixels, more than the 2,999 .* FEWSTEP_MAX_IMAGE_PIXELS"):
            read()


def test_animations_count_the_pixels_of_one_frame(tmp_path, monkeypatch):
    frames = [Image.new("RGB", (40, 40), (n, 0, 0)) for n in range(0, 250, 10)]
    monkeypatch.setenv("FEWSTEP_MAX_IMAGE_PIXELS", "1600")
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert read_as_clean_fid(tmp_path / name).size == (40, 40)


def test_large_baseline_jpegs_are_decoded_at_reduced_size_and_progressive_ones_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "LARGE", 2**12)
    monkeypatch.setenv("FEWSTEP_MAX_IMAGE_PIXELS", str(2**14))
    for name, progressive in (("baseline", False), ("progressive", True)):
        Image.new("RGB", (512, 512)).save(tmp_path / f"{name}.jpg", progressive=progressive)
    assert read_for_training(tmp_path / "baseline.jpg", "a", 16).image.size == (64, 64)
    for read in (
        lambda: read_for_training(tmp_path / "progressive.jpg", "a", 16),
        lambda: read_for_training(tmp_path / "baseline.jpg", "a", 400),
        lambda: read_as_clean_fid(tmp_path / "baseline.jpg"),
    ):
        with pytest.raises(ValueError, match="is 512 x 512 pixels, more than the 16,384"):
            read()


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path):
    content = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(content, "JPEG", progressive=True)
    data = content.getvalue()
    last = data.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(data[:last] + data[last:-2] * 200 + b"\xff\xd9")
    with pytest.raises(ValueError, match="is a JPEG of more than 100 scans"):
        read_as_clean_fid(tmp_path / "a.jpg")


def test_tiles_of_a_tiff_are_counted(tmp_path):
    def entry(tag, value):
        return struct.pack("<HHII", tag, 4, 1, value)

    tags = {256: 4, 257: 4, 258: 8, 259: 8, 262: 1, 277: 1, 322: 65536, 323: 65536, 324: 8, 325: 8}
    body = b"II*\0" + struct.pack("<I", 16) + bytes(8) + struct.pack("<H", len(tags))
    (tmp_path / "a.tif").write_bytes(body + b"".join(entry(*tag) for tag in sorted(tags.items())) + bytes(4))
    with pytest.raises(ValueError, match=r"a\.tif has tiles of 65536 x 65536 pixels"):
        read_as_clean_fid(tmp_path / "a.tif")


@pytest.fixture(scope="module")
def packed():
    return zlib.compress(bytes(60 << 20), 1)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_chunks_of_a_png_do_not_fill_the_memory(tmp_path, packed, kind):
    data = (b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0") + packed
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    (tmp_path / "a.png").write_bytes(png(8, 8, extra=chunk))
    tracemalloc.start()
    try:
        assert read_as_clean_fid(tmp_path / "a.png").size == (8, 8)
    except ValueError as error:
        assert "a.png cannot be read as an image" in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 50 << 20


def read_bombs(folder):
    """Read every file of a folder in both ways; prints name, end, and the megabytes of the process's peak so far."""
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    for file in sorted(folder.iterdir()):
        for read in (lambda: next(read_batches([file], 32)), lambda: read_for_training(file, file.name, 64)):  # noqa: B023
            try:
                read()
                how = "read"
            except ValueError:
                how = "refused"
            print(file.name, how, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10) - start, flush=True)


@pytest.mark.exhaustive
def test_no_image_takes_a_gigabyte(tmp_path):
    folder = tmp_path / "bombs"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(13300, 13300))
    (folder / "b.png").write_bytes(png(7000, 7000))
    with (folder / "d.npy").open("wb") as file:  # sparse
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (60_000, 60_000, 3)}
        )
        file.truncate(file.tell() + 3 * 60_000**2)
    (folder / "e.ppm").write_bytes(b"P6 12000 12000 255\n")
    Image.new("1", (7000, 7000)).save(folder / "f.tif", compression="group4")
    Image.new("L", (7100, 7100)).save(folder / "g.jpg", progressive=True)
    reader = Fork(tmp_path / "reader", read_bombs, folder)
    assert reader.wait() == 0, reader.error
    lines = [line.split() for line in reader.out.splitlines()]
    assert len(lines) == 12
    assert max(int(megabytes) for _, _, megabytes in lines) < 1000, reader.out
    assert {name for name, how, _ in lines if how == "read"} == {"b.png", "f.tif"}


# --- text, JSON, YAML -------------------------------------------------------------------------------------------------


def test_files_of_prompts_and_captions_have_a_largest_size(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a coat\n" * 1000)
    assert len(read_prompts(str(tmp_path / "a.txt"))) == 1000
    monkeypatch.setenv("FEWSTEP_MAX_TEXT_BYTES", "6999")
    with pytest.raises(ValueError, match=r"a\.txt must have at most 6,999 bytes, but has more; set FEWSTEP_MAX_TEXT"):
        read_prompts(str(tmp_path / "a.txt"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setenv("FEWSTEP_MAX_CAPTION_BYTES", "100")
    with pytest.raises(ValueError, match=r"a\.txt must have at most 100 bytes"):
        ImageFolder(tmp_path, True)


def test_a_caption_has_a_largest_length(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name, text in (
        ("a.txt", "x" * 20_001),
        ("metadata.jsonl", json.dumps({"file_name": "a.png", "text": "x" * 20_001})),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="must have at most 20,000 characters, got 20,001"):
            ImageFolder(tmp_path, True)
        (tmp_path / name).unlink()


DEEP = 100_000


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' is repeated"),
        ("[NaN]", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("[1e999]", "1e999 is larger than every number"),
        ("9" * 39, "at most 38 digits, got 39"),
        ("9" * 5000, "at most 38 digits, got 5000"),
        ("[" * DEEP, "more than 100 deep"),
        ('{"a":' * 101 + "1" + "}" * 101, "more than 100 deep"),
        ("[1,", "Expecting value"),
        ("", "Expecting value"),
    ],
)
def test_json_that_cannot_be_meant_is_refused(tmp_path, text, match):
    with pytest.raises(ValueError, match=match):
        parse_json(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json is not valid JSON: .*{match}"):
        read_json(tmp_path / "a.json")


def test_json_of_tokenizers_and_schedulers_is_read():
    assert parse_json('{"model_max_length": 1000000000000000019884624838656}')["model_max_length"] == int(1e30)
    assert parse_json('{"lambda_min_clipped": -Infinity}', constants=True)["lambda_min_clipped"] == -np.inf


def laughs(flow="[{}]"):
    lines = ["a0: &a0 [" + "x, " * 10 + "]"]
    lines += [f"a{i}: &a{i} {flow.format(', '.join([f'*a{i - 1}'] * 10))}" for i in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "match"),
    [
        (laughs(), "at most 100,000 values"),
        ("a: &a [*a]", "an alias is inside the value"),
        ("a: &a {b: *a}", "an alias is inside the value"),
        ("a: " + "[" * 1200, "nested too deeply"),
        ("a: " + "{a: " * 3000 + "1" + "}" * 3000, "nested too deeply"),
        ("a: " + "9" * 40, "at most 64 bits, got 40 digits"),
        ("a: 0x" + "f" * 40, "at most 64 bits"),
        ("a: 1\na: 2", "duplicate key"),
    ],
)
def test_yaml_that_would_take_memory_is_refused(tmp_path, text, match):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.yaml is not valid YAML: .*{match}"):
        read_yaml(tmp_path / "a.yaml")


def test_a_recipe_has_a_largest_size(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("a: " + "x" * 300_000)
    with pytest.raises(ValueError, match=r"a\.yaml must have at most 262,144 bytes, .* FEWSTEP_MAX_RECIPE_BYTES"):
        read_yaml(tmp_path / "a.yaml")
    monkeypatch.setenv("FEWSTEP_MAX_RECIPE_BYTES", "400000")
    assert len(read_yaml(tmp_path / "a.yaml")["a"]) == 300_000
    with pytest.raises(ValueError, match="an alias is inside"):
        parse_value("&a [*a]")


# --- archives and arrays ----------------------------------------------------------------------------------------------


def test_archives_that_inflate_are_refused_before_they_are_read(tmp_path):
    header = tarfile.TarInfo("a.jpg")
    header.size = 2**40
    (tmp_path / "large.tar").write_bytes(header.tobuf() + bytes(1024))
    with tarfile.open(tmp_path / "gzip.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    for name in ("a.txt.gz", "a.jpg.zst"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo(name))
    for name, match in {
        "large.tar": r"a\.jpg in .*large\.tar must have at most 268,435,456 bytes, got 1,099,511,627,776; set",
        "gzip.tar": r"gzip\.tar must be a \.tar that is not compressed, got gzip",
        "a.txt.gz.tar": r"a\.txt\.gz in .* must not be compressed",
        "a.jpg.zst.tar": r"a\.jpg\.zst in .* must not be compressed",
    }.items():
        with pytest.raises(ValueError, match=match):
            open_images(DataRecipe(images=str(tmp_path / name)), True)


def test_a_column_of_a_parquet_file_that_inflates_is_refused(tmp_path, monkeypatch):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("FEWSTEP_MAX_ROW_BYTES", "1000000")
    parquet.write_table(
        pa.table({"image": [bytes(4_000_000)], "text": ["a"]}), tmp_path / "a.parquet", compression="zstd"
    )
    with pytest.raises(ValueError, match=r"the column image of .*a\.parquet must have at most 1,000,000 bytes decompr"):
        open_images(DataRecipe(images=str(tmp_path / "a.parquet")), True)


def test_statistics_that_inflate_are_refused_before_they_are_read(tmp_path, monkeypatch):
    file = tmp_path / "a.npz"
    np.savez_compressed(file, mu=np.zeros(192), sigma=np.zeros((192, 192)), arr_0=np.zeros((9, 1000, 1000), np.uint8))
    monkeypatch.setenv("FEWSTEP_MAX_ARRAY_BYTES", "500_000")  # arr_0 is not read
    assert len(reference(str(file), extractor("pixels")).mean) == 192
    monkeypatch.setenv("FEWSTEP_MAX_ARRAY_BYTES", "100_000")
    with pytest.raises(ValueError, match=r"must have at most 100,000 bytes, got .* FEWSTEP_MAX_ARRAY_BYTES"):
        reference(str(file), extractor("pixels"))


def test_an_array_cannot_state_more_values_than_it_has(tmp_path):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("mu.npy", content.getvalue())
        archive.writestr("sigma.npy", content.getvalue())
    with pytest.raises(ValueError, match=r"the array mu\.npy must have the data of its shape \(1000000000000,\)"):
        reference(str(tmp_path / "a.npz"), extractor("pixels"))
