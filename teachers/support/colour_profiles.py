"""Embedded colour profiles (ICC): images in sRGB, as viewers show them and as models of images expect them."""

import functools
import io
from typing import Any

from PIL import Image, ImageChops, ImageCms

SAME = 2  # levels of 255 by which the colours of a profile of sRGB may differ after conversion, by rounding
LEVELS = range(0, 256, 32)
GREY = ("1", "L", "LA")


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image from its embedded colour profile to sRGB.

    An image without a profile, or with one of sRGB, is returned as it is. So is one whose profile is damaged or of
    other channels than the image's: viewers ignore such profiles.

    Args:
        image: An image of 8 bits per channel.

    Returns:
        The image; if it is converted, in the mode RGB or RGBA.
    """
    transform = _transform_of(image)
    if transform is None:
        return image
    converted: Image.Image = transform.apply(image.convert(_colours(image)))
    if image.has_transparency_data:
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted


def is_srgb(image: Image.Image) -> bool:
    """Whether `to_srgb` returns an image as it is; no pixels are decoded."""
    return _transform_of(image) is None


def _transform_of(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    profile = image.info.get("icc_profile")
    return _transform(profile, _colours(image)) if isinstance(profile, bytes) and profile else None


def _colours(image: Image.Image) -> str:
    """The mode of an image's colours without transparency and palette. Pillow itself converts LAB to sRGB."""
    if image.mode in GREY:
        return "L"
    return "CMYK" if image.mode == "CMYK" else "RGB"


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB; None if there is nothing to convert."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):  # all of them for damaged profiles
        return None
    except ImportError:  # of a Pillow without LittleCMS
        return None
    if mode not in ("L", "RGB"):
        return transform
    colours = _probe(mode)
    difference: Any = ImageChops.difference(transform.apply(colours), colours.convert("RGB")).getextrema()
    return None if max(most for _, most in difference) <= SAME else transform


def _probe(mode: str) -> Image.Image:
    """An image with colours of the whole range."""
    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    values = [*LEVELS, 255]
    pixels = bytes(value for red in values for green in values for blue in values for value in (red, green, blue))
    return Image.frombytes("RGB", (len(values) ** 3, 1), pixels)
