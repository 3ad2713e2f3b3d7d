"""Embedded colour profiles: colours equal the closed form of the profile's matrix, and images without one are kept."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from teachers.support.images import read_as_clean_fid, read_for_training
from tests.teachers.support.icc import ADOBE, GAMMA, profile

# Columns: the D50 XYZ of red, green and blue of sRGB (IEC 61966-2-1).
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
# Colours that both spaces have, and some rows of them.
PIXELS = np.random.default_rng(0).integers(90, 170, (24, 16, 3), dtype=np.uint8)


def encoded(linear):
    """sRGB bytes of linear values."""
    linear = np.clip(linear, 0, 1)
    values = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(values * 255)


def expected(pixels=PIXELS):
    """The bytes in sRGB of bytes (H, W, 3) in Adobe RGB."""
    return encoded((pixels / 255) ** GAMMA @ ADOBE.T @ np.linalg.inv(SRGB).T)


def read(folder, image, ending="png", **options):
    file = folder / f"image.{ending}"
    image.save(file, **options)
    return read_for_training(file, "image"), read_as_clean_fid(file)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_colours_are_those_of_the_profile_and_evaluation_reads_them_as_clean_fid(ending, tmp_path):
    decoded, evaluated = read(tmp_path, Image.fromarray(PIXELS), ending, icc_profile=profile())
    found = np.asarray(decoded.image, float)
    assert abs(found - expected()).max() <= 1
    assert abs(found - PIXELS).max() > 10
    assert np.array_equal(np.asarray(evaluated), PIXELS)


def test_transparency_is_composited_in_srgb(tmp_path):
    image = Image.fromarray(PIXELS).convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.array([[0, 255]], np.uint8), (24, 8))))
    decoded, _ = read(tmp_path, image, icc_profile=profile())
    found = np.asarray(decoded.image, float)
    assert decoded.transparent and (found[:, ::2] == 255).all()
    assert abs(found - expected())[:, 1::2].max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_profiles_are_converted(mode, tmp_path):
    grey = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(16, 0)).convert(mode)
    decoded, _ = read(tmp_path, grey, icc_profile=profile(b"GRAY"))
    levels = encoded((np.arange(256) / 255) ** GAMMA)
    assert abs(np.asarray(decoded.image, float)[3] - levels[:, None]).max() <= 1
    assert abs(levels - np.arange(256)).max() > 2


def test_a_palette_is_converted(tmp_path):
    palette = Image.fromarray(PIXELS).quantize(16)
    decoded, _ = read(tmp_path, palette, icc_profile=profile())
    plain, _ = read(tmp_path, palette)
    assert abs(np.asarray(decoded.image, float) - expected(np.asarray(plain.image))).max() <= 1


UNCHANGED = {
    "sRGB": ("RGB", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
    "damaged": ("RGB", profile()[:200]),
    "of other channels": ("RGB", profile(b"GRAY")),
    "of other channels, grey": ("L", profile()),
    "empty": ("RGB", b""),
    "none": ("RGB", None),
}


@pytest.mark.parametrize("case", UNCHANGED)
def test_other_images_keep_every_byte(case, tmp_path):
    mode, content = UNCHANGED[case]
    image = Image.fromarray(PIXELS).convert(mode)
    decoded, _ = read(tmp_path, image, icc_profile=content)
    assert np.array_equal(np.asarray(decoded.image), np.asarray(image.convert("RGB")))
