"""Embeds files in a report's page: links, tables, images and numbers."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib
import numpy as np
from PIL import Image

from vitsee.errors import UserError
from vitsee.io import tidy
from vitsee.report.words import bytes_in_words, first_line

EMBED = 2 * 2**20
"""Largest size of an embedded file, in bytes. A larger one is linked."""

PIXELS_PER_INCH = 200 / 96
"""Pixels of a figure's PNG per CSS pixel (figures have 200 dots per inch, CSS 96 pixels)."""
WIDEST, QUALITY = 1600, 80
"""Width in pixels to which a wider figure is reduced, and the quality of its WebP. Both leave labels readable, and a
page a fifth as large as the PNGs, which it links."""


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class PageFiles:
    """Files as the page embeds them. home: the page's folder. damaged: messages about unreadable files."""

    home: Path
    damaged: list[str]

    def download(self, path: Path) -> dict[str, Any]:
        """Return a link to the file, with its bytes if it is small."""
        if path.stat().st_size > EMBED:
            return self.link(path)
        href = as_uri(path.read_bytes(), "text/plain;charset=utf-8")
        return self.link(path) | {"href": href, "embedded": True}

    def table(self, path: Path) -> dict[str, Any]:
        """Return the link to a CSV, with its number of rows and its columns."""
        try:
            read = tidy.as_written(path)
        except UserError as error:
            self.damaged.append(str(error))
            return self.download(path) | {"rows": None, "columns": []}
        return self.download(path) | {"rows": len(read), "columns": [str(c) for c in read.columns]}

    def image(self, path: Path) -> dict[str, Any] | None:
        """Return a figure, its size on the page and the link to its PNG.

        It is None if the PNG cannot be read, which is noted in `damaged`.
        """
        try:
            with Image.open(path, formats=["PNG"]) as picture:
                width, height = (round(side / PIXELS_PER_INCH) for side in picture.size)
                uri = as_uri(small(picture), "image/webp")
        except Exception as error:  # decoders may raise anything for a damaged image
            self.damaged.append(f"{path}: {first_line(error)}")
            return None
        return {"uri": uri, "width": width, "height": height, "file": self.link(path)}

    def link(self, path: Path) -> dict[str, Any]:
        """Return a link to the file beside the page."""
        place = Path(os.path.relpath(path, self.home)).as_posix()
        shown = {"name": path.name, "href": quote(place), "embedded": False, "place": place}
        return shown | {"size": bytes_in_words(path.stat().st_size)}


def small(picture: Image.Image) -> bytes:
    """Return an image on white as a WebP of at most `WIDEST` pixels across."""
    flat, over = Image.new("RGB", picture.size, "white"), picture.convert("RGBA")
    flat.paste(over, mask=over)
    if flat.width > WIDEST:
        flat = flat.resize((WIDEST, round(flat.height * WIDEST / flat.width)))
    written = io.BytesIO()
    flat.save(written, "WEBP", quality=QUALITY, method=2)
    return written.getvalue()


def as_uri(content: bytes, kind: str) -> str:
    """Return the bytes of a file as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def packed(values: np.ndarray) -> str:
    """Return numbers as base64 of little-endian float32."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def packed_bytes(values: np.ndarray) -> str:
    """Return bytes as base64."""
    return base64.b64encode(values.tobytes()).decode()


def palette() -> str:
    """Return the colour map of the heat maps, as base64 of 256 RGB triples."""
    colours = matplotlib.colormaps["magma"](np.arange(256), bytes=True)[:, :3]
    return base64.b64encode(np.ascontiguousarray(colours).tobytes()).decode()


def integrity(text: str) -> str:
    """Return the hash with which the page's content security policy allows only this script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


class Names:
    """The page's anchors: readable, safe in HTML, and unique."""

    def __init__(self) -> None:
        self._given: Counter[str] = Counter()

    def anchor(self, words: Iterable[str]) -> str:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(words)).strip("-") or "part"
        self._given[name] += 1
        return name if self._given[name] == 1 else f"{name}--{self._given[name]}"
