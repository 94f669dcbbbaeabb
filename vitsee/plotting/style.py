"""The common style of figures, the canvas on which they are drawn, and how they differ in a composed figure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

MARKERS = "os^Dv*Pp<>hX"
"""Markers of the lines in a plot, in order."""

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.parse_math": False,  # dollar signs in names stay as they are
    "text.usetex": False,
}
SMALL = 7.0
"""Text size in points on a page, the smallest that journals accept."""
PAGE: Any = STYLE | {
    "font.size": SMALL,
    "axes.titlesize": SMALL,
    "axes.labelsize": SMALL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "axes.linewidth": 0.6,
    "axes.labelpad": 2,
    "axes.titlepad": 3,
    "lines.linewidth": 1.0,
    **{f"{axis}tick.{what}": 2 for axis in "xy" for what in ("major.size", "major.pad")},
}


@dataclass
class PagePart:
    """A figure drawn on a page: its height in inches, and the parts that the page draws for it.

    bars: for each colour bar its colours, axes, label and other options. legend: handles and labels.
    """

    height: float
    bars: list[tuple[ScalarMappable, Any, str, dict[str, Any]]] = field(default_factory=list)
    legend: tuple[list[Artist], list[str]] | None = None


@dataclass
class PagePanel:
    """The place on a page for one of an analysis's figures.

    width: in inches. make: makes an empty part of the page. parts: the figure drawn on each.
    """

    width: float
    make: Callable[[], SubFigure]
    parts: dict[SubFigure, PagePart] = field(default_factory=dict)


_panel: ContextVar[PagePanel | None] = ContextVar("panel", default=None)


@contextmanager
def onto(panel: PagePanel) -> Iterator[None]:
    """Run the block with every canvas a part of the panel."""
    token = _panel.set(panel)
    try:
        yield
    finally:
        _panel.reset(token)


def on_page() -> bool:
    """Whether the current figure is a panel of a page."""
    return _panel.get() is not None


def look() -> AbstractContextManager[None]:
    """Matplotlib's settings for a standalone figure, or for a panel of a page."""
    return matplotlib.rc_context(PAGE if on_page() else STYLE)


def room(alone: float) -> float:
    """Width of the next canvas in inches: the panel's, or `alone` for a standalone figure."""
    panel = _panel.get()
    return alone if panel is None else panel.width


def text_size(alone: float) -> float:
    """Size of text in points: `SMALL` on a page, `alone` in a standalone figure."""
    return SMALL if on_page() else alone


def canvas(size: tuple[float, float], layout: Any = "constrained") -> Any:
    """The canvas for a figure of this size in inches: a Figure, or within `onto` a part of a page.

    On a page, the figure is scaled to the panel's width.
    """
    panel = _panel.get()
    if panel is None:
        return Figure(figsize=size, layout=layout)
    part = panel.make()
    panel.parts[part] = PagePart(size[1] * panel.width / size[0])
    return part


def headline(figure: Any, title: str) -> None:
    """Set the title above all axes; a page has its own titles."""
    if not on_page():
        figure.suptitle(title, fontsize=9)


def colour_bar(figure: Any, image: ScalarMappable, axes: Any, label: str, **options: Any) -> None:
    """Add a colour bar; on a page, panels with the same colours share one."""
    panel = _panel.get()
    if panel is None:
        figure.colorbar(image, ax=axes, label=label, **options)
    else:
        panel.parts[figure].bars.append((image, axes, label, options))


def legend(
    figure: Any, handles: Sequence[Artist], labels: Sequence[str], columns: int, **options: Any
) -> None:
    """Add a legend below all axes, in as many columns as fit; on a page, panels with the same legend share it."""
    panel = _panel.get()
    if panel is not None:
        panel.parts[figure].legend = list(handles), list(labels)
        return
    size, width = options.get("fontsize", 9), figure.get_figwidth() - 0.2
    fits, names = fitting(labels, width, size, columns, options.get("handlelength", 2))
    figure.legend(handles, names, loc="outside lower center", ncols=fits, **options)


def fitting(
    labels: Sequence[str], width: float, size: float, most: int, handle: float = 2
) -> tuple[int, list[str]]:
    """The number of legend columns that fit in this width in inches, and the labels, wrapped if too long.

    handle: length of the line before a label, in font sizes.
    """
    beside = (handle + 3.2) * size / 72  # the line, and the spaces before and after the label
    widest = max((inches(label, size) for label in labels), default=0.0) + beside
    columns = max(1, min(most, len(labels), int(width / widest)))
    return columns, [wrapped(label, width / columns - beside, size) for label in labels]


@lru_cache(4096)
def inches(text: str, size: float) -> float:
    """Width in inches of the longest line of a text of this size in points."""
    font = FontProperties(size=size)
    widths = (
        text_to_path.get_text_width_height_descent(line, font, False)[0]
        for line in text.split("\n")
    )
    return max(widths) / 72


def wrapped(text: str, width: float, size: float) -> str:
    """The text wrapped to this width in inches; names too long for a line break after _ . / -."""
    if inches(text, size) <= width:
        return text
    lines = []
    for line in text.split("\n"):
        lines.append("")
        for piece in _pieces(line, width, size):
            if lines[-1] and inches((lines[-1] + piece).rstrip(), size) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _pieces(line: str, width: float, size: float) -> Iterator[str]:
    """The words of a line, each followed by a space, in pieces if wider than this."""
    for word in line.split():
        if inches(word, size) <= width:
            yield f"{word} "
            continue
        *some, last = re.split(r"(?<=[_./-])", word)
        most = max(1, int(width * 72 / size))  # no character is wider than high
        for part in [*some, f"{last} "]:
            yield from (part[i : i + most] for i in range(0, len(part), most))


def entitle(axes: Axes, title: str) -> None:
    """Set a title that wraps onto several lines and may contain dollar signs; a page has its own titles.

    Dollar signs are escaped, because matplotlib measures text between them as mathematics when it wraps.
    """
    if on_page():
        return
    axes.set_title(title.replace("$", r"\$"), wrap=True, parse_math=True)


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """At most `most` of the indices below `count`: the first, the last and evenly spaced ones between."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int)


def shape_ratio(values: np.ndarray) -> float:
    """Height over width of a (rows, columns) array, limited to 0.4 to 2.5."""
    return float(np.clip(values.shape[0] / values.shape[1], 0.4, 2.5))


def names_of_models(model: str, other: str | None) -> dict[str, str]:
    """Names for lines and headings by role; if both models have the same name, the second is marked."""
    second = f"{model} (other)" if other == model else other or ""
    return {"model": model, "other": second}
