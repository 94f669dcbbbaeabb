"""Conversion of decoded images to 8-bit RGB, which refuses formats that do not define white."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

LONGEST = 1000
"""Largest aspect ratio. Resizing a thin line of pixels would take gigabytes."""
SIGNED = 2
"""TIFF's sample format for signed integers."""


def rgb(image: Image.Image) -> Image.Image:
    """Return the image as 8-bit RGB. Transparency is dropped; greys of 9 to 16 bits keep their highest 8 bits.

    Raises ValueError for signed integers, 32-bit integers (mode I) and floats (F): nothing in the file says
    which value is white, and guessing from each image's range would make some images brighter and others
    darker than they are. Also raises ValueError for extreme aspect ratios, and for EPS, which is a program.
    """
    width, height = image.size
    if not 0 < max(image.size) <= LONGEST * min(image.size):
        raise ValueError(f"an image of {width} x {height} pixels cannot be resized")
    if image.format == "EPS":
        raise ValueError("EPS is a program, not an image: render it and save the result as PNG")
    image.load()
    # PPM and older PNG readers give 16-bit greys, scaled to 0 … 65535, as mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        return Image.fromarray(_highest_bits(image)).convert("RGB")
    if image.mode in ("I", "F") or (image.mode == "L" and _tag(image, SAMPLEFORMAT) == SIGNED):
        kind = {"I": "32-bit integers", "F": "floats"}.get(image.mode, "signed integers")
        low, high = image.getextrema()
        between = "" if image.mode == "L" else f" between {low:g} and {high:g}"
        raise ValueError(
            f"{kind}{between} do not define which value is white: save greys as unsigned 8-bit or 16-bit integers"
        )
    image.info.pop("transparency", None)  # avoids Pillow's warning that it is dropped
    return (image.convert("LA") if image.mode == "La" else image).convert("RGB")


def _highest_bits(image: Image.Image) -> np.ndarray:
    """Return greys of up to 16 bits as (H, W) uint8.

    Pillow unpacks a 12-bit TIFF without scaling it, and does not invert 16-bit greys in which 0 is white.
    """
    bits = 12 if _tag(image, BITSPERSAMPLE) == 12 else 16
    greys = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return 255 - greys if _tag(image, PHOTOMETRIC_INTERPRETATION) == 0 else greys


def _tag(image: Image.Image, number: int) -> Any:
    """Return a TIFF tag, the first value if it has several; None if the image does not have the tag."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) and value else value
