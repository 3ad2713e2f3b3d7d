"""The grid of samples: cells, layout, and text that wraps."""

import torch
from PIL import ImageFont

from eval.report.grid import BACKGROUND, CELL, GAP, cell, grid, wrap_text


def test_small_images_are_magnified_by_a_whole_factor_and_large_ones_reduced():
    image = torch.rand(3, 32, 32)
    large = cell(image)
    assert large.size == (CELL, CELL)
    factor = CELL // 32
    assert large.getpixel((factor - 1, 0)) == large.getpixel((0, 0))
    assert large.getpixel((0, 0)) == tuple((image[:, 0, 0] * 255).round().int().tolist())
    assert cell(torch.rand(3, 512, 256)).size == (CELL // 2, CELL)


def test_grid_has_a_column_per_row_and_a_line_per_prompt(report):
    images = [torch.zeros(3, 3, 16, 16) for _ in report["rows"]]
    with_prompts = grid(report["rows"], images, report["prompts"]["first"])
    without = grid(report["rows"], images, None)
    assert with_prompts.width > without.width >= 4 * (CELL + GAP)
    assert with_prompts.height == without.height > 3 * (CELL + GAP)
    assert without.getpixel((without.width - GAP - 1, without.height - GAP - 1)) == (0, 0, 0)
    assert without.getpixel((without.width - 1, without.height - 1)) == BACKGROUND


def test_text_is_wrapped_and_truncated():
    font = ImageFont.load_default(20)
    assert wrap_text("pocket-dmd-gan-regression, 1 step", font, 150, 4) == ["pocket-dmd-", "gan-regression,", "1 step"]
    lines = wrap_text("an ankle boot of considerable length and weight " * 9, font, 150, 3)
    assert len(lines) == 3
    assert all(font.getlength(line) <= 150 for line in lines)
    assert lines[-1].endswith("...")
    assert wrap_text("x" * 100, font, 150, 3)[0].endswith("...")
    assert wrap_text("", font, 150, 3) == [""]
