"""Line and scatter plots over depth, images or compute."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from vitsee.plotting.style import (
    MARKERS,
    canvas,
    entitle,
    evenly_spaced,
    headline,
    legend,
    look,
    on_page,
    room,
)

log = logging.getLogger(__name__)


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
    log: bool = False,
) -> Figure:
    """One line per value of `line`: the mean of y at each x, with a band from minimum to maximum.

    Undefined means (NaN) leave a gap. level: height of a dashed line. log: whether x is logarithmic;
    otherwise it is a fraction.
    """
    with look():
        figure = canvas(_plot((5.2, 3.6)))
        axes = figure.subplots()
        names = table[line].unique()
        for i, name in enumerate(names):
            values = table[table[line] == name].groupby(x)[y]
            mean = values.agg(lambda of_one: of_one.mean(skipna=False))
            marker = MARKERS[i % len(MARKERS)]
            (drawn,) = axes.plot(mean.index, mean, marker=marker, markersize=3.5, label=name)
            axes.fill_between(
                mean.index, values.min(), values.max(), color=drawn.get_color(), alpha=0.2, lw=0
            )
        if level is not None:
            axes.axhline(level, color="0.5", linestyle="--", linewidth=0.8, label=level_label)
        axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
        if log:
            _log_axis(axes, table[x])
        else:
            axes.set_xlim(0, 1.03)
        entitle(axes, title)
        _grid_lines(axes)
        _names(figure, axes, 2, frameon=False, fontsize=8)
    return figure


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
        figure = canvas(_plot((5.2, 3.9)))
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
            _plain(axes.yaxis)
        elif from_zero:
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        _grid_lines(axes)
        _names(figure, axes, 2, fontsize=7, handlelength=4, frameon=False)
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
        figure = canvas(_plot((4.4, 3.4)))
        axes = figure.subplots()
        for (value, group), colour in zip(groups, colours, strict=True):
            ascending = np.sort(group[y].to_numpy())
            axes.plot(ascending, ".-", color=colour, label=names.format(value))
        _level(axes, table[reference])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])  # room for the topmost dots
        entitle(axes, title)
        _names(figure, axes, 3, fontsize=8)
    return figure


def shaded_lines(
    table: pd.DataFrame, *, x: str, y: str, line: str, xlabel: str, ylabel: str, title: str
) -> Figure:
    """One line per value of `line`, from dark (the first) to light; the first, the last and some more are labelled."""
    names = table[line].unique()
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    named = set(evenly_spaced(len(names), 6))
    with look():
        figure = canvas(_plot((4.8, 3.9)))
        axes = figure.subplots()
        for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
            one = table[table[line] == name]
            label = str(name) if i in named else None
            axes.plot(one[x], one[y], color=colour, marker=".", markersize=3, lw=1, label=label)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        entitle(axes, title)
        _grid_lines(axes)
        _names(figure, axes, 3, fontsize=7, frameon=False)
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
        figure = canvas(_plot((4.4, 3.4)))
        axes = figure.subplots()
        axes.scatter(table[x], table[y], c=rank, cmap="viridis", vmin=0, vmax=1.1, s=14)
        _level(axes, table[reference], label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])  # room for the topmost dots
        entitle(axes, title)
        if on_page():
            _names(figure, axes, 1)
        else:
            axes.legend(loc=corner, fontsize=8)
    return figure


def _plot(alone: tuple[float, float]) -> tuple[float, float]:
    """Size of a plot with one pair of axes; on a page, without its legend."""
    width = room(alone[0])
    return (width, float(np.clip(0.62 * width, 1.6, 2.3))) if on_page() else alone


def _row(count: int, alone: tuple[float, float], **shared: bool) -> tuple[Any, list[Axes]]:
    """A canvas and its axes side by side, sharing the y axis; on a page, in as many rows as needed."""
    across = min(count, max(1, int(room(alone[0]) / 1.5))) if on_page() else count
    down = -(-count // across)
    across = -(-count // down)
    size = (room(alone[0]), down * (1.7 if across > 1 else 2.1)) if on_page() else alone
    figure = canvas(size)
    cells = figure.subplots(down, across, sharey=True, squeeze=False, **shared).ravel()
    for empty in cells[count:]:
        empty.remove()
    return figure, list(cells[:count])


def _names(figure: Any, axes: Axes, columns: int, **options: Any) -> None:
    """Add a legend for the lines of these axes below the figure."""
    legend(figure, *axes.get_legend_handles_labels(), columns, **options)


def _grid_lines(axes: Axes) -> None:
    """Light grid lines behind the data."""
    axes.grid(color="0.92")
    axes.set_axisbelow(True)


def _plain(axis: Axis) -> None:
    """Few tick labels on a logarithmic axis, written as plain numbers."""
    low, high = axis.get_view_interval()
    subs = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


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
        figure = canvas(_plot((4.8, 3.6)))
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
        _grid_lines(axes)
        _names(figure, axes, 2, fontsize=7)
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
        figure, every = _row(len(names), (max(3.8, 2.2 * len(names) + 0.6), 2.9), sharex=True)
        for axes, name in zip(every, names, strict=True):
            for i, of in enumerate(lines):
                bins = table[(table[panel] == name) & (table[line] == of)]
                middle = np.sqrt(bins["low"] * bins["high"])
                width = bins["high"] - bins["low"]
                axes.bar(middle, bins["share"], width=width, color=f"C{i}", alpha=0.6, label=of)
            axes.set(title=name)
            if len(table):  # a logarithmic axis needs a number
                axes.set(xscale="log", yscale="log")
                _plain(axes.xaxis)
                _plain(axes.yaxis)
            _grid_lines(axes)
        every[0].set_ylabel(ylabel)
        headline(figure, title)
        if on_page():
            for axes in every:
                axes.set_xlabel(xlabel)
            _names(figure, every[0], len(lines))
        else:
            labels = every[0].get_legend_handles_labels()
            figure.supxlabel(xlabel, fontsize=9)
            figure.legend(
                *labels, loc="outside upper right", ncols=len(lines), frameon=False, fontsize=8
            )
    return figure


def steps(
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
) -> Figure:
    """One plot per value of `panel`, one line per value of `line`: y with error bars, x evenly spaced in order."""
    names = table[panel].unique()
    with look():
        figure, every = _row(len(names), (max(3.6, 2.5 * len(names) + 0.5), 3.2))
        for axes, name in zip(every, names, strict=True):
            inside = table[table[panel] == name]
            places = np.unique(inside[x])
            for i, (of, one) in enumerate(inside.groupby(line, sort=False)):
                axes.errorbar(
                    np.searchsorted(places, one[x]), one[y], one[error], capsize=2, lw=1.2,
                    marker=MARKERS[i % len(MARKERS)], markersize=3.5, label=of,
                )  # fmt: skip
            axes.set_xticks(range(len(places)), [f"{place:g}" for place in places])
            axes.set(title=name, xlabel=xlabel, ylim=(min(0, table[y].min()), 1.03))
            _grid_lines(axes)
        every[0].set_ylabel(ylabel)
        headline(figure, title)
        _names(figure, every[0], 2, frameon=False, fontsize=8)
    return figure


def training_curve(name: str, metrics: pd.DataFrame, heads: pd.DataFrame | None = None) -> Figure:
    """Training loss, accuracy on held-out images and each head's attention distance, against images seen.

    metrics: columns images, loss, test_accuracy. heads: columns images, block, head, distance (relative to
    uniform attention); None for a model without attention.
    """
    figure = canvas((8.0 if heads is None else 12.0, 3.2))
    axes = figure.subplots(1, 2 if heads is None else 3)
    for axis, column, label in (
        (axes[0], "loss", "Training loss"),
        (axes[1], "test_accuracy", "Accuracy on held-out images"),
    ):
        axis.plot(metrics["images"], metrics[column])
        axis.set_ylabel(label)
    axes[1].set_ylim(0, 1)
    if heads is not None:
        last = max(1, heads["block"].max())
        for _, line in heads.groupby(["block", "head"]):
            block, head = line[["block", "head"]].iloc[0]
            named = {"label": f"block {block}"} if head == 0 and block in (0, last) else {}
            colour = matplotlib.colormaps["viridis"](0.9 * block / last)
            axes[2].plot(line["images"], line["distance"], color=colour, linewidth=0.8, **named)
        axes[2].set_ylabel("Attention distance / uniform")
        axes[2].set_ylim(0, 1.05 * max(1.0, heads["distance"].max()))
        axes[2].legend(loc="lower left")
    for axis in axes:
        axis.set_xlabel("Images seen")
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter(EngFormatter())
    figure.suptitle(name, parse_math=False)
    return figure


SCALED = {"train_images": "Number of training images", "training_flops": "Training FLOPs"}


def scaling(table: pd.DataFrame, data: str, column: str) -> Figure:
    """Accuracy against training images or compute: one line per model family.

    table: columns model, family, accuracy, se, and the columns in SCALED. A family is named after its model with
    the shortest name.
    """
    with look():
        figure, (axes,) = _row(1, (4.8, 3.8))
        for i, (_, rows) in enumerate(table.groupby("family")):
            ordered = rows.sort_values(column)
            axes.errorbar(
                ordered[column], ordered["accuracy"], ordered["se"],
                marker=MARKERS[i % len(MARKERS)], markersize=4, linewidth=1.2, capsize=2,
                label=min(rows["model"], key=len),
            )  # fmt: skip
        axes.set(xlabel=SCALED[column], ylabel=f"Accuracy on held-out {data}", ylim=(0, 1))
        _log_axis(axes, table[column])
        _grid_lines(axes)
        _names(figure, axes, 3, frameon=False, fontsize=8)
    return figure


def accuracies(table: pd.DataFrame, data: str) -> Figure:
    """Accuracy of each model with its standard error, in the order of the table.

    table: columns model, accuracy, se.
    """
    with look():
        figure = canvas((room(3.4), 0.9 + 0.28 * max(4, len(table))))
        axes = figure.subplots()
        places = range(len(table))
        axes.errorbar(table["accuracy"], places, xerr=table["se"], fmt="o", markersize=4, capsize=2)
        axes.set_yticks(places, table["model"])
        axes.set(xlabel=f"Accuracy on held-out {data}", xlim=(0, 1), ylim=(len(table) - 0.5, -0.5))
        _grid_lines(axes)
    return figure


def _log_axis(axes: Axes, values: pd.Series) -> None:
    """A logarithmic x axis with few labels, or a note if all values are unknown."""
    if not np.isfinite(values).any():
        axes.set_xticks([])
        axes.text(0.5, 0.5, "No model card", transform=axes.transAxes, ha="center", color="0.35")
        return
    decades = np.log10(values.max() / values.min())
    subs = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0) if decades < 1 else (1.0, 2.0, 5.0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=subs if decades < 2 else (1.0,)))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
