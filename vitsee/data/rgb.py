"""Any decoded image as 8-bit RGB, by value; what does not say which value is white is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

LONGEST = 1000
"""A side may be so many times the other one; a line of pixels would be resized to gigabytes."""
SIGNED = 2
"""TIFF's sample format of numbers below and above 0."""


def rgb(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB; transparency is dropped, greys of 9 to 16 bits keep their highest 8.

    Raises ValueError for signed numbers, 32-bit integers (mode I) and floats (F): nothing in their files
    says which value is white, and a guess from each image's range would make one image of a set brighter
    than it is and the next one darker. Also for what cannot be an image to resize, and for EPS, a program.
    """
    width, height = image.size
    if not 0 < max(image.size) <= LONGEST * min(image.size):
        raise ValueError(f"{width} x {height} pixels are no image that can be resized")
    if image.format == "EPS":
        raise ValueError("EPS is a program that draws: run it, and save what it draws as PNG")
    image.load()
    # PPM and older PNG readers give 16-bit greys, scaled to 0 … 65535, as mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        return Image.fromarray(_highest_bits(image)).convert("RGB")
    if image.mode in ("I", "F") or (image.mode == "L" and _tag(image, SAMPLEFORMAT) == SIGNED):
        kind = {"I": "integers of 32 bits", "F": "floats"}.get(image.mode, "signed numbers")
        low, high = image.getextrema()
        between = "" if image.mode == "L" else f" between {low:g} and {high:g}"
        raise ValueError(
            f"{kind}{between} do not say which one is white: save greys as unsigned 8 or 16 bits"
        )
    image.info.pop("transparency", None)  # dropped without Pillow's advice to keep it
    return (image.convert("LA") if image.mode == "La" else image).convert("RGB")


def _highest_bits(image: Image.Image) -> np.ndarray:
    """(H, W) uint8 of greys of up to 16 bits. Pillow unpacks a TIFF of 12 bits but does not scale it, and
    leaves 16-bit greys whose 0 is white as they are."""
    bits = 12 if _tag(image, BITSPERSAMPLE) == 12 else 16
    greys = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return 255 - greys if _tag(image, PHOTOMETRIC_INTERPRETATION) == 0 else greys


def _tag(image: Image.Image, number: int) -> Any:
    """A TIFF's tag, the first value if there are several; None if the image has none."""
    found = getattr(image, "tag_v2", {}).get(number)
    return found[0] if isinstance(found, tuple) and found else found
