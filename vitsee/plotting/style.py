"""The house style, and the canvas that a figure is drawn on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

MARKERS = "os^Dv*Pp<>hX"
"""Of lines in one plot, in this order."""


_place: ContextVar[Callable[[tuple[float, float]], SubFigure] | None] = ContextVar(
    "place", default=None
)

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "pdf.fonttype": 42,  # real text in PDFs
    "svg.hashsalt": "vitsee",
    "text.parse_math": False,  # names are drawn as they are, whatever dollars they have
    "text.usetex": False,
}


def canvas(size: tuple[float, float], layout: Any = "constrained") -> Any:
    """What a figure of this size in inches is drawn on: a Figure, or within `onto` a part of a larger one."""
    place = _place.get()
    return Figure(figsize=size, layout=layout) if place is None else place(size)


@contextmanager
def onto(place: Callable[[tuple[float, float]], SubFigure]) -> Iterator[None]:
    """Within the block `place` makes every canvas, of the size in inches that it would have alone."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def entitle(axes: Axes, title: str) -> None:
    """A title of as many lines as it needs, dollars and all.

    Text that matplotlib wraps it measures as mathematics between dollars, whether or not it is to be drawn so.
    """
    axes.set_title(title.replace("$", r"\$"), wrap=True, parse_math=True)


def shape_ratio(values: np.ndarray) -> float:
    return float(np.clip(values.shape[0] / values.shape[1], 0.4, 2.5))


def names_of_models(model: str, other: str | None) -> dict[str, str]:
    """By role, how lines and headings call the models; the second is told apart from one of the same name."""
    second = f"{model} (other)" if other == model else other or ""
    return {"model": model, "other": second}
