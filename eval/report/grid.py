"""The grid of samples, grid.png: one column per row of the table, one line per prompt, the same noise in each line."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from teachers.support.text import printable

PIXEL_RATIO = 2  # pixels of the file per CSS pixel, for high-density displays
CELL = 96 * PIXEL_RATIO
GAP = 5 * PIXEL_RATIO
PROMPT_WIDTH = 132 * PIXEL_RATIO
FONT_SIZE, LINE_HEIGHT = 12 * PIXEL_RATIO, 16 * PIXEL_RATIO
HEADING_LINES = 4
NBSP = "\N{NO-BREAK SPACE}"  # keeps a number and its unit on one line; drawn as a space, which every font has
BACKGROUND, TEXT, SECONDARY_TEXT = (255, 255, 255), (23, 28, 38), (91, 101, 117)


def thumbnail(image: Tensor, side: int = CELL) -> Image.Image:
    """An image (3, H, W) in [0, 1] with 8 bits, reduced to at most `side` pixels per side if it is larger."""
    small = Image.fromarray(image.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    small.thumbnail((side, side), Image.Resampling.LANCZOS)  # never enlarges
    return small


def magnification(image: Image.Image) -> int:
    """The largest whole factor by which `image` still fits a cell."""
    return max(1, CELL // max(image.size))


def cell(image: Tensor) -> Image.Image:
    """An image (3, H, W) in [0, 1] for the grid: magnified by a whole factor, or reduced to fit."""
    small = thumbnail(image)
    factor = magnification(small)
    return small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST)


def grid(
    rows: Sequence[dict[str, Any]], images: Sequence[Sequence[Tensor]], prompts: Sequence[str] | None
) -> Image.Image:
    """The grid with names above the columns and prompts to the left.

    Args:
        rows: The rows of report.json.
        images: For each row, a picture (3, H, W) in [0, 1] of each of its K samples.
        prompts: The K prompts, or None.
    """
    font = ImageFont.load_default(FONT_SIZE)
    headings = [wrap_text(row["name"].replace(" step", NBSP + "step"), font, CELL, HEADING_LINES) for row in rows]
    top = GAP + max(len(heading) for heading in headings) * LINE_HEIGHT + GAP
    left = GAP if prompts is None else PROMPT_WIDTH + 2 * GAP
    # A wider gap separates the teacher's columns from the students'.
    shifts = [3 * GAP * (row["method"] != "teacher") for row in rows]
    lines = len(images[0])
    sheet = Image.new("RGB", (left + len(rows) * (CELL + GAP) + shifts[-1], top + lines * (CELL + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for line, prompt in enumerate((prompts or [])[:lines]):
        text = wrap_text(prompt, font, PROMPT_WIDTH, CELL // LINE_HEIGHT)
        y = top + line * (CELL + GAP) + (CELL - len(text) * LINE_HEIGHT) // 2
        for number, part in enumerate(text):
            draw.text((GAP, y + number * LINE_HEIGHT), part, fill=SECONDARY_TEXT, font=font)
    for column, (heading, shift, row_images) in enumerate(zip(headings, shifts, images, strict=True)):
        x = left + column * (CELL + GAP) + shift
        for number, part in enumerate(heading):
            draw.text((x, top - GAP - (len(heading) - number) * LINE_HEIGHT), part, fill=TEXT, font=font)
        for line, image in enumerate(row_images):
            drawn = cell(image)
            offset = ((CELL - drawn.width) // 2, (CELL - drawn.height) // 2)
            sheet.paste(drawn, (x + offset[0], top + line * (CELL + GAP) + offset[1]))
    return sheet


def wrap_text(text: str, font: Any, width: int, max_lines: int) -> list[str]:
    """Break `text` into at most `max_lines` lines of at most `width` pixels.

    Text that does not fit ends in an ellipsis. A word that is too long for a line is broken after its hyphens.
    """
    lines = [""]
    for word in printable(text).split(" "):  # split() would also split at no-break spaces
        parts = [word] if font.getlength(word) <= width else re.findall("[^-]*-|[^-]+", word)
        for number, part in enumerate(parts):
            longer = f"{lines[-1]}{'' if number else ' '}{part}".strip()
            if font.getlength(longer) <= width or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(part)
    if len(lines) > max_lines:
        lines = lines[:max_lines]
        lines[-1] += " ..."
    return [_truncate(line.replace(NBSP, " "), font, width) for line in lines]


def _truncate(line: str, font: Any, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    line = line.removesuffix(" ...")
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."
