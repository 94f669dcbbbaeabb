"""The drawing vocabulary that analyses share, and the house style: a table in, a matplotlib figure out."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Line:
    """Values by depth. Lines of the same `group` share a colour."""

    values: np.ndarray
    label: str
    group: str
    dashed: bool = False


def depth_lines(
    lines: list[Line],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    x: list[np.ndarray] | None = None,
) -> Figure:
    """Lines over depth: over the block's number, or over `x` (one array a line)."""
    colours = {group: f"C{i}" for i, group in enumerate(dict.fromkeys(l.group for l in lines))}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.subplots()
        for i, line in enumerate(lines):
            axes.plot(
                np.arange(len(line.values)) if x is None else x[i],
                line.values,
                label=line.label,
                color=colours[line.group],
                linestyle="--" if line.dashed else "-",
                marker="o",
                markersize=3,
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=x is None))
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def panels(
    values: dict[str, np.ndarray], *, xlabel: str, ylabel: str, title: str, colour_label: str
) -> Figure:
    """Heatmaps one above the other by their titles, (rows, columns) each, row 0 at the bottom.

    One colour scale, up to the 99th percentile: values beyond it are clipped for display. Undefined
    ones (NaN) are grey.
    """
    every = np.concatenate([part.ravel() for part in values.values()])
    finite = every[np.isfinite(every)]
    limits = (float(finite.min()), float(np.percentile(finite, 99))) if len(finite) else (0.0, 1.0)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 2.2 * len(values) + 0.5), layout="constrained")
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
        figure.colorbar(image, ax=list(column), label=colour_label, extend="max")
        figure.suptitle(title, fontsize=9)
    return figure


def fields(rows: dict[str, dict[str, np.ndarray]], *, title: str, columns: int) -> Figure:
    """Maps by name, each normalised to its own maximum, under a heading for each group of them."""
    lines = [
        (heading if start == 0 else "", list(maps.items())[start : start + columns])
        for heading, maps in rows.items()
        for start in range(0, len(maps), columns)
    ]
    widest = max(len(line) for _, line in lines)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.15 * widest + 0.9, 1.4 * len(lines) + 0.7), layout="constrained")
        grid = figure.subplots(len(lines), widest, squeeze=False)
        for (heading, line), cells in zip(lines, grid, strict=True):
            for cell in cells:
                cell.set(xticks=[], yticks=[])
                cell.axis("off")
            cells[0].text(0, 1.22, heading, transform=cells[0].transAxes, fontsize=9)
            for cell, (name, values) in zip(cells, line, strict=False):
                highest = np.nanmax(values) if np.isfinite(values).any() else 0
                scaled = values / highest if highest > 0 else np.full_like(values, np.nan)
                cell.axis("on")
                cell.set_facecolor("0.85")
                image = cell.imshow(scaled, cmap="magma", vmin=0, vmax=1)
                cell.set_title(name, fontsize=7, pad=2)
        figure.colorbar(image, ax=grid, label="|gradient| / its maximum", shrink=0.6)
        figure.suptitle(title, fontsize=9)
    return figure
