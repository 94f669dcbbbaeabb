"""Embeds files in a report's page: links, tables, images and numbers."""

from __future__ import annotations

import base64
import hashlib
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


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class PageFiles:
    """Files as the page embeds them. home: the page's folder. damaged: messages about unreadable files."""

    home: Path
    damaged: list[str]

    def download(self, path: Path) -> dict[str, Any]:
        """Return a link to the file, with its bytes if it is small."""
        size = path.stat().st_size
        embedded = size <= EMBED
        place = Path(os.path.relpath(path, self.home)).as_posix()
        href = data_uri(path, "text/plain;charset=utf-8") if embedded else quote(place)
        shown = {"name": path.name, "href": href, "embedded": embedded, "place": place}
        return shown | {"size": bytes_in_words(size)}

    def table(self, path: Path) -> dict[str, Any]:
        """Return the link to a CSV, with its number of rows and its columns."""
        try:
            read = tidy.as_written(path)
        except UserError as error:
            self.damaged.append(str(error))
            return self.download(path) | {"rows": None, "columns": []}
        return self.download(path) | {"rows": len(read), "columns": [str(c) for c in read.columns]}

    def image(self, path: Path) -> dict[str, Any] | None:
        """Return a PNG and its size on the page; None if it cannot be read, which is noted in `damaged`."""
        try:
            with Image.open(path, formats=["PNG"]) as picture:
                picture.verify()
                width, height = (round(side / PIXELS_PER_INCH) for side in picture.size)
        except Exception as error:  # decoders may raise anything for a damaged image
            self.damaged.append(f"{path}: {first_line(error)}")
            return None
        return {"uri": data_uri(path, "image/png"), "width": width, "height": height}


def data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


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
