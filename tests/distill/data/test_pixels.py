"""Fitting of images to a teacher's size: covered, centred, without borders."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as V

from distill.data.images import Row
from teachers.media import Image as ImageMedium
from teachers.media.pictures import TRANSPARENT, fit


@pytest.mark.parametrize("teacher", [(32, 48), (48, 32), (32, 32), (16, 64)])
@pytest.mark.parametrize("size", [(40, 40), (100, 30), (30, 100), (48, 32), (320, 20), (20, 320), (33, 47)])
@pytest.mark.first_is_quick
def test_image_covers_the_teacher_without_borders_and_keeps_its_centre(teacher, size):
    """A white image with a black cross through its centre: white at the corners, and the cross stays in the middle."""
    height, width = size
    image = torch.full((3, height, width), 255, dtype=torch.uint8)
    image[:, (height - 1) // 2 : height // 2 + 1] = 0
    image[:, :, (width - 1) // 2 : width // 2 + 1] = 0
    fitted = fit(image, *teacher)
    assert fitted.shape == (3, *teacher)
    darkness = 255 - fitted[0].float()
    for profile in (darkness.mean(0), darkness.mean(1)):
        weight = profile - profile.min()
        middle = (weight * torch.arange(len(weight))).sum() / weight.sum()
        assert abs(float(middle) - (len(weight) - 1) / 2) < 0.6  # a crop is centred to half a pixel


def test_nothing_outside_the_image_is_learnt():
    """No black bars: a white image stays white in every shape."""
    for size in ((8, 8), (10, 320), (320, 10), (33, 47), (1, 1), (1, 30), (30, 1)):
        for teacher in ((32, 48), (48, 32), (64, 16)):
            assert fit(torch.full((3, *size), 255, dtype=torch.uint8), *teacher).min() == 255


@pytest.mark.parametrize("size", [(40, 32), (32, 40), (100, 30), (64, 64), (31, 77)])
def test_square_teacher_gets_torchvisions_resize_and_crop(size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fit(image, 32, 32), V.center_crop(V.resize(image, [32]), [32, 32]))


def test_aspect_ratio_is_kept():
    """A disc stays a disc in a teacher that is not square."""
    y, x = np.mgrid[:120, :200]
    disc = (((y - 59.5) ** 2 + (x - 99.5) ** 2 < 40**2) * 255).astype(np.uint8)
    fitted = fit(torch.from_numpy(disc)[None], 48, 40)[0] > 127
    rows, columns = fitted.any(1).sum(), fitted.any(0).sum()
    assert abs(int(rows) - 32) <= 1 and abs(int(rows) - int(columns)) <= 1


def test_panorama_needs_little_memory():
    fitted = fit(torch.zeros(3, 2, 60_000, dtype=torch.uint8), 256, 256)  # resized whole: 5.9 GB
    assert fitted.shape == (3, 256, 256)


@pytest.mark.parametrize(
    ("row", "captioned", "message"),
    [
        (("thin", "a", "thin.png"), True, "thin is 1 x 4000 pixels"),
        (("deep", "a", "deep.png"), True, "deep has more than 8 bits"),
        (("a\nb", None, None), True, r"a\\nb has no caption"),
        (("row 1", "a", None), False, "row 1 has no image data"),
    ],
)
def test_rows_that_cannot_be_used_say_why(tmp_path, row, captioned, message):
    Image.new("RGB", (1, 4000)).save(tmp_path / "thin.png")
    Image.fromarray(np.full((8, 8), 9999, np.uint16)).save(tmp_path / "deep.png")
    name, caption, file = row
    with pytest.raises(ValueError, match=message):
        Row(name, caption, file and (tmp_path / file).read_bytes()).read(ImageMedium(8, 8), captioned)


def test_pixels_are_in_minus_one_to_one_and_transparency_is_noted(tmp_path):
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "a.png")
    reading = Row("a", None, tmp_path / "a.png").read(ImageMedium(8, 8))
    assert reading.notes == (TRANSPARENT,) and torch.equal(reading.values, torch.ones(3, 8, 8))
    Image.new("L", (8, 8), 0).save(tmp_path / "b.png")
    reading = Row("b", None, tmp_path / "b.png").read(ImageMedium(8, 8))
    assert not reading.notes and torch.equal(reading.values, -torch.ones(3, 8, 8))
