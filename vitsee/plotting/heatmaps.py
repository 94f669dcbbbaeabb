"""Heatmaps of pairs of layers, and of blocks and tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitsee.plotting.style import (
    canvas,
    colour_bar,
    entitle,
    headline,
    look,
    on_page,
    room,
    text_size,
    wrapped,
)


def heatmap(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    value: str,
    limits: tuple[float, float],
    xlabel: str,
    ylabel: str,
    title: str,
    colour_label: str,
) -> Figure:
    """One square cell per row of a tidy table, in order of appearance; the y axis points upwards.

    Values are clipped to `limits` for display only. Undefined values (NaN) are grey, with a note below
    the figure.
    """
    columns, rows = table[x].unique(), table[y].unique()
    grid = table.pivot(index=y, columns=x, values=value).loc[rows, columns].to_numpy(float)
    with look():
        width, height = _size(len(columns), len(rows))
        figure = canvas((width, height))
        axes = figure.subplots()
        axes.set_facecolor("0.85")
        image = axes.imshow(
            grid,
            origin="lower",
            cmap="magma",
            vmin=limits[0],
            vmax=limits[1],
            interpolation="nearest",
        )
        _depth_axis(axes, "x", columns)
        _depth_axis(axes, "y", rows)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        entitle(axes, title)
        colour_bar(figure, image, axes, colour_label, shrink=0.9)
        if np.isnan(grid).any():
            note = "Grey: undefined (see the log of the run)"
            figure.supxlabel(wrapped(note, width, 8), fontsize=text_size(8), color="0.35")
    return figure


def _size(columns: int, rows: int) -> tuple[float, float]:
    """Size in inches of a figure with square cells; a standalone figure has room for its colour bar."""
    ratio = float(np.clip(rows / columns, 0.4, 2.5))
    if on_page():
        width = room(4.0)
        return width, (min(width, 3.4) - 0.5) * min(1.0, ratio) + 0.4
    width = 4.0 if ratio <= 1 else 4.0 / ratio
    return width + 1.0, width * ratio + 0.7


def _depth_axis(axes: Axes, which: str, names: np.ndarray) -> None:
    """Layer indices from input to output, or layer names if there are few."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if len(names) <= 16:
        axis.set_ticks(range(len(names)), labels=[str(name) for name in names])
        if which == "x":
            axes.tick_params(axis="x", rotation=90)
    else:
        most = min(8, int(2.5 * room(8)))  # three-digit numbers
        axis.set_major_locator(MaxNLocator(nbins=most, integer=True, steps=[1, 2, 2.5, 5, 10]))


def _stack(count: int) -> tuple[float, float]:
    """Size in inches of this many stacked plots."""
    return (room(6.2), 1.15 * count + 0.3) if on_page() else (6.2, 2.2 * count + 0.5)


def panels(
    values: dict[str, np.ndarray], *, xlabel: str, ylabel: str, title: str, colour_label: str
) -> Figure:
    """Stacked heatmaps by title, (rows, columns) each, row 0 at the bottom.

    All share one colour scale up to the 99th percentile; larger values are clipped for display only.
    Undefined values (NaN) are grey.
    """
    every = np.concatenate([part.ravel() for part in values.values()])
    finite = every[np.isfinite(every)]
    limits = (float(finite.min()), float(np.percentile(finite, 99))) if len(finite) else (0.0, 1.0)
    with look():
        figure = canvas(_stack(len(values)))
        column = figure.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, part) in zip(column, values.items(), strict=True):
            axes.set_facecolor("0.85")
            image = axes.imshow(
                part, origin="lower", aspect="auto", cmap="magma", vmin=limits[0], vmax=limits[1],
                interpolation="nearest",
            )  # fmt: skip
            axes.set(title=name, ylabel=ylabel)
            axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        column[-1].set_xlabel(xlabel)
        column[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        colour_bar(figure, image, list(column), colour_label, extend="max")
        headline(figure, title)
    return figure
