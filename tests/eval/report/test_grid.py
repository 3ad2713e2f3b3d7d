"""The grid of samples."""

import io

import torch
from PIL import Image, ImageFont

from eval.report.grid import CELL, GAP, PAPER, SHARPNESS, cell, grid, strip, wrapped


def test_strips_hold_the_pictures_in_their_places():
    png, width = strip(torch.stack([torch.full((3, 16, 16), i / 10) for i in range(7)]), across=5)
    sheet = Image.open(io.BytesIO(png))
    assert sheet.size == (5 * (CELL + GAP) - GAP, 2 * (CELL + GAP) - GAP)
    assert width == sheet.width // SHARPNESS
    assert sheet.getpixel((CELL + GAP + 1, CELL + GAP + 1)) == (153,) * 3  # number 6, second of the second line


def test_small_images_are_magnified_by_whole_pixels_and_large_ones_shrunk():
    image = torch.rand(3, 32, 32)
    big = cell(image)
    assert big.size == (CELL, CELL)
    factor = CELL // 32
    assert big.getpixel((factor - 1, 0)) == big.getpixel((0, 0))
    assert big.getpixel((0, 0)) == tuple((image[:, 0, 0] * 255).round().int().tolist())
    assert cell(torch.rand(3, 512, 256)).size == (CELL // 2, CELL)


def test_grid_has_a_column_a_row_and_a_line_a_prompt(report):
    images = [torch.zeros(3, 3, 16, 16) for _ in report["rows"]]
    with_prompts = grid(report["rows"], images, report["prompts"]["first"])
    without = grid(report["rows"], images, None)
    assert with_prompts.width > without.width >= 4 * (CELL + GAP)
    assert with_prompts.height == without.height > 3 * (CELL + GAP)
    assert without.getpixel((without.width - GAP - 1, without.height - GAP - 1)) == (0, 0, 0)
    assert without.getpixel((without.width - 1, without.height - 1)) == PAPER


def test_text_is_wrapped_and_cut():
    font = ImageFont.load_default(20)
    assert wrapped("pocket-dmd-gan-regression, 1 step", font, 150, 4) == ["pocket-dmd-", "gan-regression,", "1 step"]
    lines = wrapped("an ankle boot of considerable length and weight " * 9, font, 150, 3)
    assert len(lines) == 3
    assert all(font.getlength(line) <= 150 for line in lines)
    assert lines[-1].endswith("...")
    assert wrapped("x" * 100, font, 150, 3)[0].endswith("...")
    assert wrapped("", font, 150, 3) == [""]
