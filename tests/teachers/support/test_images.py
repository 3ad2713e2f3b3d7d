"""The image reader: what training and evaluation read of each kind of file, and what both refuse."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from teachers.support import images
from teachers.support.images import read_as_clean_fid, read_for_training

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 16, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)


def both(file):
    return np.asarray(read_for_training(file, str(file)).image), np.asarray(read_as_clean_fid(file))


def write(folder, name, image, **options):
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.jpg", "CMYK"),
        ("a.png", "L"),
        ("a.png", "1"),
        ("a.png", "P"),
        ("a.png", "RGBA"),
        ("a.png", "LA"),
        ("a.tif", "LAB"),
        ("a.jpg", "YCbCr"),
        ("a.webp", "RGB"),
        ("a.bmp", "RGB"),
        ("a.pgm", "L"),
        ("a.ppm", "RGB"),
        ("日本.png", "RGB"),
    ],
)
def test_opaque_images_are_those_of_pillow(tmp_path, name, mode):
    file = write(tmp_path, name, RGB.convert(mode))
    expected = np.asarray(Image.open(file).convert("RGB"))
    for actual in both(file):
        assert np.array_equal(actual, expected)


@pytest.mark.parametrize(("mode", "ending"), [("I;16", "png"), ("I;16", "tif"), ("I", "tif"), ("F", "tif")])
def test_more_than_8_bits_are_refused_by_both_with_the_name(tmp_path, mode, ending):
    array = np.full((8, 8), 16384, {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
    file = write(tmp_path, f"deep.{ending}", Image.fromarray(array))
    for read in (lambda: read_for_training(file, str(file)), lambda: read_as_clean_fid(file)):
        with pytest.raises(
            ValueError, match=r"deep\.\w+ has more than 8 bits per channel \(mode .*\); save it as 8-bit"
        ):
            read()


def test_16_bit_greymap_is_refused(tmp_path):
    (tmp_path / "deep.pgm").write_bytes(b"P5 4 4 65535\n" + b"\x40\x00" * 16)
    with pytest.raises(ValueError, match="more than 8 bits"):
        both(tmp_path / "deep.pgm")


def png(width, height, depth, kind, pixels):
    """A PNG file of any bit depth, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + pixels * width for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_colour_keeps_its_upper_8_bits(tmp_path):
    (tmp_path / "a.png").write_bytes(png(4, 4, 16, 2, b"\x40\x00\x80\x00\xff\xff"))
    for actual in both(tmp_path / "a.png"):
        assert actual.reshape(-1, 3).tolist() == [[64, 128, 255]] * 16


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_training_composites_on_white_and_evaluation_ignores_transparency(tmp_path, mode):
    hidden = np.zeros((8, 8, 4), np.uint8)
    hidden[..., 0] = 255  # red where nothing is visible
    hidden[2:6, 2:6] = (0, 0, 255, 255)
    image = Image.fromarray(hidden)
    options = {}
    if mode == "LA":
        image = image.convert("LA")
    elif mode == "P":
        image, options = Image.fromarray(hidden[..., 3] // 255).convert("P"), {"transparency": 0}
    elif mode in ("L", "RGB"):
        image = image.convert("RGB").convert(mode)
        options = {"transparency": image.getpixel((0, 0))}
    file = write(tmp_path, "a.png", image, **options)
    decoded = read_for_training(file, str(file))
    assert decoded.transparent and decoded.image.getpixel((0, 0)) == (255, 255, 255)
    assert np.array_equal(np.asarray(read_as_clean_fid(file)), np.asarray(Image.open(file).convert("RGB")))


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    file = write(tmp_path, "a.png", Image.new("RGBA", (4, 4), (0, 100, 200, 128)))
    (red, green, blue) = read_for_training(file, "a").image.getpixel((0, 0))
    assert (red, green, blue) == pytest.approx((127, 177, 227), abs=1)


def test_opaque_alpha_channel_is_not_reported(tmp_path):
    assert not read_for_training(write(tmp_path, "a.png", RGB.convert("RGBA")), "a").transparent


def test_training_applies_the_exif_orientation_and_evaluation_does_not(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = write(tmp_path, "a.jpg", RGB, exif=exif)
    for_training, for_evaluation = both(file)
    assert for_evaluation.shape == (24, 16, 3)
    assert np.array_equal(for_training, np.rot90(for_evaluation, -1))


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tif", "a.gif"])
def test_first_frame_of_an_animation_is_read(tmp_path, name):
    options = {"lossless": True} if name == "a.webp" else {}
    file = write(tmp_path, name, RGB, save_all=True, append_images=[Image.fromarray(255 - PIXELS)], **options)
    expected = np.asarray(Image.open(file).convert("RGB"))
    for actual in both(file):
        assert np.array_equal(actual, expected)


def test_ending_does_not_decide_the_format(tmp_path):
    RGB.save(tmp_path / "a.jpg", "PNG")
    assert all(np.array_equal(actual, PIXELS) for actual in both(tmp_path / "a.jpg"))


def damaged():
    stream = io.BytesIO()
    RGB.resize((64, 64)).save(stream, "JPEG")
    whole = stream.getvalue()
    return {
        "empty": (b"", "it is empty"),
        "page": (b"<!DOCTYPE html><html>404</html>", "it is an HTML or XML page"),
        "svg": (b"<?xml version='1.0'?><svg/>", "it is an HTML or XML page"),
        "text": (b"a photo of a bag", "it has no known image format"),
        "cut": (whole[: len(whole) // 2], "truncated"),
        "header": (whole[:20], ""),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "it has no known image format"),
    }


@pytest.mark.parametrize("case", damaged())
def test_damaged_files_are_errors_with_the_name_and_the_reason(tmp_path, case):
    content, reason = damaged()[case]
    (tmp_path / "x.jpg").write_bytes(content)
    for read in (lambda: read_for_training(tmp_path / "x.jpg", "x.jpg"), lambda: read_as_clean_fid(tmp_path / "x.jpg")):
        with pytest.raises(ValueError, match=rf"x\.jpg cannot be read as an image \(.*{reason}.*\); remove or replace"):
            read()
    with pytest.raises(ValueError, match=rf"row 3 cannot be read as an image \(.*{reason}"):
        read_for_training(content, "row 3")


def test_missing_file_and_name_with_control_characters(tmp_path):
    with pytest.raises(ValueError, match=r"gone\\n\\x1b\.png cannot be read as an image") as error:
        read_as_clean_fid(tmp_path / "gone\n\x1b.png")
    assert "\n" not in str(error.value)


def test_arrays_are_images_of_bytes_only(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    assert all(np.array_equal(actual, PIXELS) for actual in both(tmp_path / "a.npy"))
    np.save(tmp_path / "b.npy", PIXELS / 255)
    with pytest.raises(ValueError, match=r"b\.npy has the shape \(24, 16, 3\) and the type float64; an array"):
        both(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"c\.npy cannot be read as an image \(.*Python objects"):
        both(tmp_path / "c.npy")


def test_thin_image_is_refused_for_training_in_a_true_sentence(tmp_path):
    file = write(tmp_path, "thin.png", Image.new("RGB", (1, 4000)))
    with pytest.raises(ValueError, match=r"thin\.png is 1 x 4000 pixels; its longer side must be at most 32 times"):
        read_for_training(file, "thin.png")
    assert read_as_clean_fid(file).size == (1, 4000)


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch):
    file = write(tmp_path, "huge.png", Image.new("L", (3000, 1000)))
    monkeypatch.setenv("FEWSTEP_MAX_IMAGE_PIXELS", "2_000_000")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    for read in (lambda: read_for_training(file, "huge.png"), lambda: read_as_clean_fid(file)):
        with pytest.raises(
            ValueError, match=r"is 3000 x 1000 pixels, more than the 2,000,000 .* FEWSTEP_MAX_IMAGE_PIXELS"
        ):
            read()


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpeg_is_decoded_at_reduced_size(tmp_path, monkeypatch, orientation):
    monkeypatch.setattr(images, "LARGE", 2**16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    gradient = Image.linear_gradient("L").resize((1024, 512)).convert("RGB")
    file = write(tmp_path, "large.jpg", gradient, exif=exif, quality=95)
    full, reduced = (read_for_training(file, "large.jpg", side).image for side in (None, 32))
    assert full.size == ((1024, 512) if orientation == 1 else (512, 1024))
    assert full.width // reduced.width == full.height // reduced.height == 8
    difference = np.asarray(full.resize(reduced.size, Image.Resampling.BOX), float) - np.asarray(reduced, float)
    assert abs(difference).max() < 6
    assert read_for_training(file, "large.jpg", 200).image.size == full.size  # enough pixels for the teacher's size


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "CMYK"])
def test_other_large_images_are_reduced(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(images, "LARGE", 2**16)
    image = Image.linear_gradient("L").resize((1024, 512)).convert(mode)
    if mode == "RGBA":
        image.putalpha(128)
    file = write(tmp_path, "large.tif", image)
    full, reduced = (read_for_training(file, "large.tif", side) for side in (None, 32))
    assert reduced.image.size == (128, 64) and reduced.transparent == full.transparent == (mode == "RGBA")
    expected = np.asarray(full.image.resize((128, 64), Image.Resampling.BOX), float)
    assert abs(expected - np.asarray(reduced.image, float)).max() < 3


def test_ordinary_images_are_decoded_whole(tmp_path):
    file = write(tmp_path, "a.jpg", RGB.resize((600, 400)))
    assert read_for_training(file, "a.jpg", 8).image.size == (600, 400)


def test_no_warnings_for_damaged_exif(tmp_path):
    file = write(tmp_path, "a.jpg", RGB, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01broken")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_for_training(file, "a.jpg").image.size == (16, 24)
