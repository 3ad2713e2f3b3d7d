"""The only reader of image files, for training and evaluation.

Both refuse the same files. They differ in two conversions: evaluation reads what clean-fid reads, so that its figures
can be compared with published ones, and training reads what an image viewer shows.

| | training | evaluation, as clean-fid |
| --- | --- | --- |
| transparency | composited on white | ignored |
| EXIF orientation | applied | ignored |
| embedded colour profile | converted to sRGB | ignored |
| more than 8 bits in a grey channel | refused | refused |
| 16-bit colour | the upper 8 bits, as Pillow | the same |
| animation | first frame | first frame |

An image of more than `teachers.support.limits.IMAGE_PIXELS` pixels is refused before it is decoded. In training,
baseline JPEGs are decoded at a reduced size, which counts.
"""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from teachers.support.colour_profiles import to_srgb
from teachers.support.limits import IMAGE_PIXELS
from teachers.support.regular import check_regular, open_regular, read_bytes
from teachers.support.text import one_line, printable

# Formats that Pillow decodes itself. Others run programs (EPS) or are no photographs.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
LARGE = 2**24  # pixels; larger images are reduced if that is enough, JPEGs while decoding
BUDGET = 2**26  # pixels of the images that several threads decode at the same time for training
MAX_CHANNELS = 8  # of a TIFF
MAX_SCANS = 100  # of a progressive JPEG; encoders write about ten, and each takes the time of a whole image
MAX_ASPECT = 32  # of the longer side to the shorter one, for training: of other images little would remain


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes:
        image: The image in RGB, in sRGB.
        transparent: Whether it had transparent pixels, which are composited on white.
    """

    image: Image.Image
    transparent: bool = False


def read_for_training(source: Path | bytes, name: str, side: int | None = None) -> Decoded:
    """Read an image as a viewer shows it: upright, in sRGB and composited on white.

    Args:
        source: An image file, or the contents of one.
        name: Its name in messages.
        side: Both sides of the result must have at least this many pixels where the image has them; an image of more
            than LARGE pixels is reduced. None: full size.

    Returns:
        The image.

    Raises:
        ValueError: If it is damaged, not an image, too large, too thin, or has more than 8 bits per channel.
    """
    try:
        with _open(source) as image:
            width, height = image.size
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise _Refused(
                    f"is {width} x {height} pixels; its longer side must be at most {MAX_ASPECT} times the shorter one"
                )
            reduced = side if width * height > LARGE else None
            if reduced is not None:
                if _is_progressive(image):  # all of its coefficients are in memory
                    _check_pixels(width, height)
                image.draft(None, (2 * reduced, 2 * reduced))  # only JPEG; twice the size, as it is resized afterwards
            _check(image, source)
            with _budget.take(image.width * image.height):
                return _flatten(image, reduced if image.width * image.height > LARGE else None)
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        raise ValueError(f"{printable(name)} {_problem(error, source)}") from error


def read_as_clean_fid(file: Path) -> Image.Image:
    """Read an image in RGB as clean-fid does: without its orientation and its transparency.

    Raises:
        ValueError: If it is damaged, not an image, too large, or has more than 8 bits per channel.
    """
    try:
        with _open(file) as image:
            _check(image, file)
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        raise ValueError(f"{printable(file)} {_problem(error, file)}") from error


@contextmanager
def image_header(file: Path) -> Iterator[Image.Image]:
    """A context with an opened image whose pixels are not decoded yet.

    Raises:
        ValueError: If it is not an image.
    """
    try:
        image = _open(file)
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        raise ValueError(f"{printable(file)} {_problem(error, file)}") from error
    with image:
        yield image


class _Budget:
    """Limits the pixels that several threads decode at the same time."""

    def __init__(self) -> None:
        self.used, self.changed = 0, threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """A context in which this thread decodes `pixels`; it waits while others decode too many."""
        with self.changed:
            self.changed.wait_for(lambda: self.used == 0 or self.used + pixels <= BUDGET)
            self.used += pixels
        try:
            yield
        finally:
            with self.changed:
                self.used -= pixels
                self.changed.notify_all()


_budget = _Budget()


class _Refused(ValueError):
    """An image that is readable and cannot be used; the message follows its name."""


def _open(source: Path | bytes) -> Image.Image:
    if isinstance(source, Path) and source.suffix == ".npy":
        check_regular(source)
        array = np.load(source, allow_pickle=False, mmap_mode="r")
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise _Refused(
                f"has the shape {array.shape} and the type {array.dtype}; an array of an image must have the shape "
                "(H, W, 3) and the type uint8"
            )
        _check_pixels(array.shape[1], array.shape[0])
        return Image.fromarray(np.ascontiguousarray(array))
    Image.init()
    if IMAGE_PIXELS.value > 2 * (Image.MAX_IMAGE_PIXELS or IMAGE_PIXELS.value):
        Image.MAX_IMAGE_PIXELS = IMAGE_PIXELS.value  # Pillow's own limit, which applies to the header already
    known = [name for name in FORMATS if name in Image.OPEN]
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source), formats=known)
    check_regular(source)  # Pillow would wait for a FIFO
    return Image.open(source, formats=known)


def _check(image: Image.Image, source: Path | bytes) -> None:
    """Raise an error for an opened image whose pixels must not or cannot be decoded."""
    _check_pixels(*image.size)
    if image.mode.startswith(("I", "F")):  # convert("RGB") would clip them
        raise _Refused(f"has more than 8 bits per channel (mode {image.mode}); save it as 8-bit RGB")
    if image.format == "TIFF":
        _check_blocks(image)
    if _is_progressive(image):
        content = source if isinstance(source, bytes) else read_bytes(source)
        if content.count(b"\xff\xda") > MAX_SCANS:  # start of scan
            raise _Refused(f"is a JPEG of more than {MAX_SCANS} scans; save it again")


def _check_pixels(width: int, height: int) -> None:
    most = IMAGE_PIXELS.value
    if width * height > most:
        raise _Refused(
            f"is {width} x {height} pixels, more than the {most:,} that are read from one image; make it smaller, or "
            f"{IMAGE_PIXELS.advice}"
        )


def _check_blocks(image: Any) -> None:
    """Check the strips or tiles of a TIFF, which libtiff decodes as a whole even if the image is smaller."""
    rows = min(image.tag_v2.get(278, 1), image.height)  # RowsPerStrip, by default the whole image
    width, height = image.tag_v2.get(322, image.width), image.tag_v2.get(323, rows)  # TileWidth, TileLength
    if width * height > IMAGE_PIXELS.value:
        raise _Refused(f"has tiles of {width} x {height} pixels, more than the {IMAGE_PIXELS.value:,} that are read")
    samples = image.tag_v2.get(277, 1)  # SamplesPerPixel
    if samples > MAX_CHANNELS:
        raise _Refused(f"has {samples} channels, expected at most {MAX_CHANNELS}")


def _is_progressive(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and bool(image.info.get("progressive"))


def _flatten(image: Image.Image, side: int | None = None) -> Decoded:
    ImageOps.exif_transpose(image, in_place=True)
    image = to_srgb(image)
    if side is not None:
        image = _shrink(image, 2 * side)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            white = Image.new("RGBA", layer.size, "white")
            return Decoded(Image.alpha_composite(white, layer).convert("RGB"), True)
    return Decoded(image.convert("RGB"))


def _shrink(image: Image.Image, side: int) -> Image.Image:
    """Average blocks of pixels, so that copies of a large image are small; both sides stay at least `side`."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    factor = min(image.size) // side
    return image.reduce(factor) if factor > 1 else image


def _problem(error: Exception, source: Path | bytes) -> str:
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"has more than {IMAGE_PIXELS.value:,} pixels, the most that are read from one image; make it smaller, or "
            f"{IMAGE_PIXELS.advice}"
        )
    reason = one_line(str(error)) or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "it has no known image format"
        start = source[:100] if isinstance(source, bytes) else _start(source)
        if not start:
            reason = "it is empty"
        elif start.lstrip().startswith(b"<"):
            reason = "it is an HTML or XML page"
    return f"cannot be read as an image ({reason}); remove or replace it"


def _start(file: Path) -> bytes:
    with open_regular(file) as stream:
        return stream.read(100)
