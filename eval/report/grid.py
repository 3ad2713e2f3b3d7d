"""The picture that people share: one column a row of the table, one line a prompt, the same noise across each line."""

import io
import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SHARPNESS = 2  # pixels of the file for one of the page, for screens with small pixels
CELL = 96 * SHARPNESS
GAP = 5 * SHARPNESS
PROMPTS = 132 * SHARPNESS  # width of the column of prompts
TEXT, LINE = 12 * SHARPNESS, 16 * SHARPNESS
HOLD = "\N{NO-BREAK SPACE}"  # keeps a number and its unit on one line; drawn as a space, for which fonts have a glyph
PAPER, INK, FAINT = (255, 255, 255), (23, 28, 38), (91, 101, 117)


def cell(image: Tensor) -> Image.Image:
    """An image (3, H, W) in [0, 1] as it stands in the grid: whole pixels magnified, or a large image shrunk to fit."""
    picture = Image.fromarray(image.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    largest = max(picture.size)
    if largest <= CELL:
        factor = CELL // largest
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    return picture


def grid(rows: Sequence[dict[str, Any]], images: Sequence[Tensor], prompts: Sequence[str] | None) -> Image.Image:
    """The grid of `images`, one (K, 3, H, W) for each of `rows`; `prompts` are the K prompts, or None."""
    font = ImageFont.load_default(TEXT)
    heads = [wrapped(row["name"].replace(" step", HOLD + "step"), font, CELL, 4) for row in rows]
    top = GAP + max(len(head) for head in heads) * LINE + GAP
    left = GAP if prompts is None else PROMPTS + 2 * GAP
    # A wider gap parts the teacher's columns from the students'.
    shifts = [3 * GAP * (row["method"] != "teacher") for row in rows]
    lines = len(images[0])
    sheet = Image.new("RGB", (left + len(rows) * (CELL + GAP) + shifts[-1], top + lines * (CELL + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for line in range(lines if prompts is not None else 0):
        text = wrapped((prompts or [])[line], font, PROMPTS, CELL // LINE)
        y = top + line * (CELL + GAP) + (CELL - len(text) * LINE) // 2
        for number, part in enumerate(text):
            draw.text((GAP, y + number * LINE), part, fill=FAINT, font=font)
    for column, (head, shift, pictures) in enumerate(zip(heads, shifts, images, strict=True)):
        x = left + column * (CELL + GAP) + shift
        for number, part in enumerate(head):
            draw.text((x, top - GAP - (len(head) - number) * LINE), part, fill=INK, font=font)
        for line, image in enumerate(pictures):
            picture = cell(image)
            inset = ((CELL - picture.width) // 2, (CELL - picture.height) // 2)
            sheet.paste(picture, (x + inset[0], top + line * (CELL + GAP) + inset[1]))
    return sheet


def strip(images: Tensor, across: int = 5) -> tuple[bytes, int]:
    """A row's pictures (K, 3, H, W), `across` a line, as a PNG for the viewer, and its width on the page in pixels."""
    pictures = [cell(image) for image in images]
    width, height = (max(sizes) for sizes in zip(*(picture.size for picture in pictures), strict=True))
    lines = -(-len(pictures) // across)
    across = min(across, len(pictures))
    sheet = Image.new("RGB", (across * (width + GAP) - GAP, lines * (height + GAP) - GAP), PAPER)
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % across * (width + GAP), number // across * (height + GAP)))
    stream = io.BytesIO()
    sheet.save(stream, format="PNG", optimize=True)
    return stream.getvalue(), sheet.width // SHARPNESS


def wrapped(text: str, font: Any, width: int, most: int) -> list[str]:
    """`text` in at most `most` lines of at most `width` pixels; what does not fit ends in an ellipsis.

    A word that is too long for a line is broken after its hyphens.
    """
    lines = [""]
    for word in text.split(" "):  # and not at a space that holds its words together
        parts = [word] if font.getlength(word) <= width else re.findall("[^-]*-|[^-]+", word)
        for number, part in enumerate(parts):
            longer = f"{lines[-1]}{'' if number else ' '}{part}".strip()
            if font.getlength(longer) <= width or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(part)
    if len(lines) > most:
        lines = lines[:most]
        lines[-1] += " ..."
    return [_cut(line.replace(HOLD, " "), font, width) for line in lines]


def _cut(line: str, font: Any, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    line = line.removesuffix(" ...")
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."
