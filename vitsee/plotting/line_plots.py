"""Plots of lines and dots by depth, rank or any other quantity."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitsee.plotting.axes import grid_lines, line_legend, plain_labels, plot_size, row_of_axes
from vitsee.plotting.style import (
    MARKERS,
    canvas,
    entitle,
    evenly_spaced,
    headline,
    look,
    on_page,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Line:
    """Values by depth; lines of the same `group` share a colour."""

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
    from_zero: bool = True,
    log: bool = False,
) -> Figure:
    """Lines over the block index, or over `x` (one array per line).

    from_zero: the y axis starts at 0, or at the lowest value if that is negative. log: it is logarithmic.
    """
    colours = {group: f"C{i}" for i, group in enumerate(dict.fromkeys(l.group for l in lines))}
    with look():
        figure = canvas(plot_size((5.2, 3.9)))
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
        axes.set(xlabel=xlabel, ylabel=ylabel)
        entitle(axes, title)
        if log:
            axes.set_yscale("log")
            plain_labels(axes.yaxis)
        elif from_zero:
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        grid_lines(axes)
        line_legend(figure, axes, 2, fontsize=7, handlelength=4, frameon=False)
    return figure


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
    """The values y of each `line` in ascending order; `reference`: the column of the dashed line."""
    groups = list(table.groupby(line, sort=True))
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(groups)))
    with look():
        figure = canvas(plot_size((4.4, 3.4)))
        axes = figure.subplots()
        for (value, group), colour in zip(groups, colours, strict=True):
            ascending = np.sort(group[y].to_numpy())
            axes.plot(ascending, ".-", color=colour, label=names.format(value))
        _level(axes, table[reference])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])  # room for the topmost dots
        entitle(axes, title)
        line_legend(figure, axes, 3, fontsize=8)
    return figure


def shaded_lines(
    table: pd.DataFrame, *, x: str, y: str, line: str, xlabel: str, ylabel: str, title: str
) -> Figure:
    """One line per value of `line`, from dark (the first) to light; the first, the last and some more are labelled."""
    names = table[line].unique()
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    named = set(evenly_spaced(len(names), 6))
    with look():
        figure = canvas(plot_size((4.8, 3.9)))
        axes = figure.subplots()
        for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
            one = table[table[line] == name]
            label = str(name) if i in named else None
            axes.plot(one[x], one[y], color=colour, marker=".", markersize=3, lw=1, label=label)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        entitle(axes, title)
        grid_lines(axes)
        line_legend(figure, axes, 3, fontsize=7, frameon=False)
    return figure


def dots(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    reference: str,
    xlabel: str,
    ylabel: str,
    title: str,
    label: str = "uniform attention",
    corner: str = "lower right",
) -> Figure:
    """One dot per row, coloured by its rank in y among the rows of the same x.

    reference: the column of the dashed line, which `label` names in this corner.
    """
    rank = table.groupby(x)[y].rank(method="first", pct=True)
    with look():
        figure = canvas(plot_size((4.4, 3.4)))
        axes = figure.subplots()
        axes.scatter(table[x], table[y], c=rank, cmap="viridis", vmin=0, vmax=1.1, s=14)
        _level(axes, table[reference], label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])  # room for the topmost dots
        entitle(axes, title)
        if on_page():
            line_legend(figure, axes, 1)
        else:
            axes.legend(loc=corner, fontsize=8)
    return figure


def _level(axes: Axes, values: pd.Series, label: str = "uniform attention") -> None:
    """A dashed line at each value of a reference, which differs between stages."""
    for level in values.unique():
        axes.axhline(level, color="0.4", lw=0.8, ls="--", label=label)
        label = "_"  # the legend shows only one of them


def lines_with_errors(
    lines: dict[str, pd.DataFrame],
    *,
    x: str,
    y: str,
    error: str,
    xlabel: str,
    ylabel: str,
    title: str,
) -> Figure:
    """One line per table, labelled with its name, with a band of one standard error to either side."""
    with look():
        figure = canvas(plot_size((4.8, 3.6)))
        axes = figure.subplots()
        for i, (name, line) in enumerate(lines.items()):
            line = line.sort_values(x)
            (drawn,) = axes.plot(
                line[x], line[y], marker=MARKERS[i % 8], markersize=3.5, label=name
            )
            low, high = line[y] - line[error], line[y] + line[error]
            axes.fill_between(line[x], low, high, color=drawn.get_color(), alpha=0.2, lw=0)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        entitle(axes, title)
        grid_lines(axes)
        line_legend(figure, axes, 2, fontsize=7)
    return figure


def histograms(
    table: pd.DataFrame,
    *,
    panel: str,
    line: str,
    xlabel: str,
    ylabel: str,
    title: str,
    most: int = 4,
) -> Figure:
    """Histograms on logarithmic axes, one plot per value of `panel`, at most the last `most`.

    table: columns low and high (the edges of a bin), share, and the columns given by panel and line.
    """
    names = list(table[panel].unique()[-most:])
    lines = list(table[line].unique())
    inside = np.isfinite(table["high"]) & (table["low"] > 0) & (table["share"] > 0)
    table = table[inside & table[panel].isin(names)]
    with look():
        figure, every = row_of_axes(
            len(names), (max(3.8, 2.2 * len(names) + 0.6), 2.9), sharex=True
        )
        for axes, name in zip(every, names, strict=True):
            for i, of in enumerate(lines):
                bins = table[(table[panel] == name) & (table[line] == of)]
                middle = np.sqrt(bins["low"] * bins["high"])
                width = bins["high"] - bins["low"]
                axes.bar(middle, bins["share"], width=width, color=f"C{i}", alpha=0.6, label=of)
            axes.set(title=name)
            if len(table):  # a logarithmic axis needs a number
                axes.set(xscale="log", yscale="log")
                plain_labels(axes.xaxis)
                plain_labels(axes.yaxis)
            grid_lines(axes)
        every[0].set_ylabel(ylabel)
        headline(figure, title)
        if on_page():
            for axes in every:
                axes.set_xlabel(xlabel)
            line_legend(figure, every[0], len(lines))
        else:
            labels = every[0].get_legend_handles_labels()
            figure.supxlabel(xlabel, fontsize=9)
            figure.legend(
                *labels, loc="outside upper right", ncols=len(lines), frameon=False, fontsize=8
            )
    return figure


def points_with_errors(
    table: pd.DataFrame,
    *,
    panel: str,
    x: str,
    y: str,
    line: str,
    error: str,
    xlabel: str,
    ylabel: str,
    title: str,
    highest: float = 1.0,
) -> Figure:
    """One plot per value of `panel`, one line per value of `line`: y with error bars, x evenly spaced in order.

    highest: the largest possible value of y.
    """
    names = table[panel].unique()
    with look():
        figure, every = row_of_axes(len(names), (max(3.6, 2.5 * len(names) + 0.5), 3.2))
        for axes, name in zip(every, names, strict=True):
            inside = table[table[panel] == name]
            places = np.unique(inside[x])
            for i, (of, one) in enumerate(inside.groupby(line, sort=False)):
                axes.errorbar(
                    np.searchsorted(places, one[x]), one[y], one[error], capsize=2, lw=1.2,
                    marker=MARKERS[i % len(MARKERS)], markersize=3.5, label=of,
                )  # fmt: skip
            axes.set_xticks(range(len(places)), [f"{place:g}" for place in places])
            axes.set(title=name, xlabel=xlabel, ylim=(min(0, table[y].min()), 1.03 * highest))
            grid_lines(axes)
        every[0].set_ylabel(ylabel)
        headline(figure, title)
        line_legend(figure, every[0], 2, frameon=False, fontsize=8)
    return figure
