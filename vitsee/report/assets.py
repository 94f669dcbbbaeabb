"""Embeds files in a report's page: links, tables, images and numbers."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib
import numpy as np
from PIL import Image

from vitsee.errors import UserError
from vitsee.io import tidy
from vitsee.report.words import bytes_in_words, first_line

PAGE, MAPS, FIGURES = 4_900_000, 800_000, 3_800_000
"""Maximum number of characters embedded in a page: in all, for maps of pairs, and for figures; tables get the rest.
Anything larger is linked, so that a page of all figures can be sent and opened on a phone."""

PIXELS_PER_INCH = 200 / 96
"""Pixels of a figure's PNG per CSS pixel (figures have 200 dots per inch, CSS 96 pixels)."""
WIDEST, LARGEST, QUALITY = 1400, 3_000_000, 70
"""Maximum width and number of pixels of a figure, and the quality of its WebP: labels stay readable."""


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class PageFiles:
    """The files that a page embeds or links. home: the page's folder. damaged: messages about unreadable files."""

    home: Path
    damaged: list[str]
    _room: int = field(default_factory=lambda: PAGE - MAPS)
    _room_for_figures: int = field(default_factory=lambda: FIGURES)
    _room_for_maps: int = field(default_factory=lambda: MAPS)
    _pictures: dict[Path, dict[str, Any]] = field(default_factory=dict)
    _tables: dict[Path, str] = field(default_factory=dict)

    def embed_figures(self, paths: Iterable[Path]) -> None:
        """Embed, in this order, the PNGs that can be read and that fit."""
        for path in paths:
            try:
                with Image.open(path, formats=["PNG"]) as picture:
                    width, height = (round(side / PIXELS_PER_INCH) for side in picture.size)
                    uri = as_uri(small(picture), "image/webp")
            except Exception as error:  # decoders may raise anything for a damaged image
                self.damaged.append(f"{path}: {first_line(error)}")
                continue
            fits = len(uri) <= self._room_for_figures
            self._room_for_figures -= len(uri) * fits
            self._room -= len(uri) * fits
            shown = {"uri": uri if fits else None, "width": width, "height": height}
            self._pictures[path] = shown | {"file": self.link(path)}

    def embed_tables(self, paths: Iterable[Path]) -> None:
        """Embed the files that fit in the remaining space, the smallest first."""
        for path in sorted(paths, key=lambda path: (path.stat().st_size, path)):
            if path.stat().st_size * 4 / 3 > self._room:
                return
            self._tables[path] = as_uri(path.read_bytes(), "text/plain;charset=utf-8")
            self._room -= len(self._tables[path])

    def fit(self, cells: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return the cells of a map of pairs if they fit, and reduce the space left for others; else None."""
        size = len(cells["values"]) + len(cells["errors"]) if cells else 0
        if size > self._room_for_maps:
            return None
        self._room_for_maps -= size
        return cells

    def image(self, path: Path) -> dict[str, Any] | None:
        """Return a figure, its size on the page and the link to its PNG; None if it cannot be read.

        Its `uri` is None if it does not fit in the page.
        """
        return self._pictures.get(path)

    def link(self, path: Path) -> dict[str, Any]:
        """Return a link to the file, relative to the page."""
        place = Path(os.path.relpath(path, self.home)).as_posix()
        shown = {"name": path.name, "href": quote(place), "embedded": False, "place": place}
        return shown | {"size": bytes_in_words(path.stat().st_size)}

    def download(self, path: Path) -> dict[str, Any]:
        """Return a link to the file, with its bytes if they are embedded."""
        if path not in self._tables:
            return self.link(path)
        return self.link(path) | {"href": self._tables[path], "embedded": True}

    def table(self, path: Path) -> dict[str, Any]:
        """Return the link to a CSV, with its number of rows and its columns."""
        try:
            read = tidy.as_written(path)
        except UserError as error:
            self.damaged.append(str(error))
            return self.download(path) | {"rows": None, "columns": []}
        return self.download(path) | {"rows": len(read), "columns": [str(c) for c in read.columns]}


def small(picture: Image.Image) -> bytes:
    """Return an image on white as a WebP of limited size."""
    flat, over = Image.new("RGB", picture.size, "white"), picture.convert("RGBA")
    flat.paste(over, mask=over)
    scale = min(WIDEST / flat.width, math.sqrt(LARGEST / (flat.width * flat.height)))
    if scale < 1:
        flat = flat.resize((round(scale * flat.width), round(scale * flat.height)))
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
    """Return the hash by which the page's content security policy allows only this script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


class Names:
    """The page's anchors: readable, safe in HTML, and unique."""

    def __init__(self) -> None:
        self._given: Counter[str] = Counter()

    def anchor(self, words: Iterable[str]) -> str:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(words)).strip("-") or "part"
        self._given[name] += 1
        return name if self._given[name] == 1 else f"{name}--{self._given[name]}"
