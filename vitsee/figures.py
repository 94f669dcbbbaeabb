"""The drawing vocabulary that analyses share, and the house style: a table in, a matplotlib figure out."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "pdf.fonttype": 42,  # real text in PDFs
    "svg.hashsalt": "vitsee",
}


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
    """One square cell per (x, y) row of a tidy table, in the order the rows come; y grows upwards.

    Cells are clipped to `limits` for display only. Undefined values (NaN) are hatched grey and named
    below the figure.
    """
    columns, rows = table[x].unique(), table[y].unique()
    grid = table.pivot(index=y, columns=x, values=value).loc[rows, columns].to_numpy(float)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=_size(len(columns), len(rows)), layout="constrained")
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
        axes.set_title(title, wrap=True)
        figure.colorbar(image, label=colour_label, shrink=0.9)
        if np.isnan(grid).any():
            figure.supxlabel("grey: not defined (see the log of the run)", fontsize=8, color="0.35")
    return figure


def _size(columns: int, rows: int) -> tuple[float, float]:
    """Inches of a figure whose cells are square, within what a page column can take."""
    ratio = float(np.clip(rows / columns, 0.4, 2.5))
    width = 4.0 if ratio <= 1 else 4.0 / ratio
    return width + 1.0, width * ratio + 0.7


def _depth_axis(axes: Axes, which: str, names: np.ndarray) -> None:
    """Layer numbers from input to output; the names themselves where they are few."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if len(names) <= 16:
        axis.set_ticks(range(len(names)), labels=[str(name) for name in names])
        if which == "x":
            axes.tick_params(axis="x", rotation=90)
    else:
        axis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 2.5, 5, 10]))


def sorted_lines(
    table: pd.DataFrame,
    *,
    line: str,
    y: str,
    reference: str,
    xlabel: str,
    ylabel: str,
    title: str,
    names: str = "{}",
) -> Figure:
    """The values y of each `line` in ascending order; `reference` names the column of the dashed level."""
    groups = list(table.groupby(line, sort=True))
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(groups)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.4), layout="constrained")
        axes = figure.subplots()
        for (value, group), colour in zip(groups, colours, strict=True):
            ascending = np.sort(group[y].to_numpy())
            axes.plot(ascending, ".-", color=colour, label=names.format(value))
        _level(axes, table[reference])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_ylim(bottom=0)
        axes.set_title(title, wrap=True)
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def dots(
    table: pd.DataFrame, *, x: str, y: str, reference: str, xlabel: str, ylabel: str, title: str
) -> Figure:
    """One dot a row, coloured by its place in ascending order of y among those of the same x."""
    rank = table.groupby(x)[y].rank(method="first", pct=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.scatter(table[x], table[y], c=rank, cmap="viridis", vmin=0, vmax=1.1, s=14)
        _level(axes, table[reference])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_ylim(bottom=0)
        axes.set_title(title, wrap=True)
        axes.legend(loc="lower right", fontsize=8)
    return figure


def _level(axes: Axes, values: pd.Series) -> None:
    """A dashed line at what attention to all tokens alike would give."""
    for level in values.unique():
        axes.axhline(level, color="0.4", lw=0.8, ls="--", label="uniform attention")
