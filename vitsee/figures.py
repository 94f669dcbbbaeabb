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


def curves(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    line: str,
    xlabel: str,
    ylabel: str,
    title: str,
    level: float | None = None,
    level_label: str = "",
) -> Figure:
    """A line for each value of `line`: the mean of y at each x, and a band from its least to its largest.

    Where a mean is not defined (NaN) the line has a gap. level: a dashed horizontal line.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axes = figure.subplots()
        names = table[line].unique()
        for i, name in enumerate(names):
            values = table[table[line] == name].groupby(x)[y]
            mean = values.agg(lambda of_one: of_one.mean(skipna=False))
            marker = "os^Dv*Pp<>hX"[i % 12]
            (drawn,) = axes.plot(mean.index, mean, marker=marker, markersize=3.5, label=name)
            axes.fill_between(
                mean.index, values.min(), values.max(), color=drawn.get_color(), alpha=0.2, lw=0
            )
        if level is not None:
            axes.axhline(level, color="0.5", linestyle="--", linewidth=0.8, label=level_label)
        axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, 1.03), ylim=(0, None))
        axes.set_title(title, wrap=True)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=min(3, len(names) + 1), frameon=False)
    return figure


def grids(
    table: pd.DataFrame,
    *,
    panel: str,
    row: str,
    column: str,
    value: str,
    colour_label: str,
    title: str,
    most: int = 6,
) -> Figure:
    """Maps over a grid of positions, row 0 on top, a panel and a colour scale of its own for each `panel`.

    At most `most` panels are drawn, evenly spaced and with the first and the last.
    """
    every = table[panel].unique()
    chosen = np.unique(np.linspace(0, len(every) - 1, min(most, len(every))).round().astype(int))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(3.6, 2.1 * len(chosen)), 2.4), layout="constrained")
        panels = figure.subplots(1, len(chosen), squeeze=False)[0]
        for axes, name in zip(panels, every[chosen], strict=True):
            cells = table[table[panel] == name].pivot(index=row, columns=column, values=value)
            axes.set_facecolor("0.85")
            image = axes.imshow(cells.to_numpy(float), cmap="viridis", interpolation="nearest")
            axes.set_title(name)
            axes.set(xticks=[], yticks=[])
            figure.colorbar(image, ax=axes, location="bottom", shrink=0.9)
        figure.suptitle(title, fontsize=9)
        figure.supxlabel(colour_label, fontsize=8)
    return figure
