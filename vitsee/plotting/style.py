"""The common style of figures, and the canvas they are drawn on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

MARKERS = "os^Dv*Pp<>hX"
"""Markers of the lines in one plot, in order."""

_place: ContextVar[Callable[[tuple[float, float]], SubFigure] | None] = ContextVar(
    "place", default=None
)

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.parse_math": False,  # dollar signs in names stay as they are
    "text.usetex": False,
}


def canvas(size: tuple[float, float], layout: Any = "constrained") -> Any:
    """The canvas for a figure of this size in inches: a Figure, or within `onto` part of a larger one."""
    place = _place.get()
    return Figure(figsize=size, layout=layout) if place is None else place(size)


@contextmanager
def onto(place: Callable[[tuple[float, float]], SubFigure]) -> Iterator[None]:
    """Within this block, `place` makes every canvas from the size in inches it would have alone."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def entitle(axes: Axes, title: str) -> None:
    """Set a title that wraps onto several lines and may contain dollar signs.

    When matplotlib wraps text, it always measures text between dollar signs as mathematics, so they are
    escaped.
    """
    axes.set_title(title.replace("$", r"\$"), wrap=True, parse_math=True)


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """At most `most` of the indices below `count`: the first, the last and evenly spaced ones between."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int)


def shape_ratio(values: np.ndarray) -> float:
    """Height over width of a (rows, columns) array, within 0.4 to 2.5."""
    return float(np.clip(values.shape[0] / values.shape[1], 0.4, 2.5))


def names_of_models(model: str, other: str | None) -> dict[str, str]:
    """Names for lines and headings by role; if both models have the same name, the second is marked."""
    second = f"{model} (other)" if other == model else other or ""
    return {"model": model, "other": second}
