"""The drawing vocabulary that analyses share, and the house style: a table in, a matplotlib figure out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
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


@dataclass(frozen=True)
class Map:
    """Values over a grid, (rows, columns), and the (row, column) that is marked, if any."""

    values: np.ndarray
    title: str
    mark: tuple[int, int] | None = None


@dataclass(frozen=True)
class MapRow:
    """Maps side by side on one colour scale."""

    maps: list[Map]
    label: str
    limits: tuple[float, float]


def maps(rows: list[MapRow], *, title: str, colour_label: str, xlabel: str, ylabel: str) -> Figure:
    """Rows of maps, each row with its own colour bar; row 0 of a map is at the top, as in an image.

    Values are clipped to the limits of their row for display only; undefined ones (NaN) are grey.
    """
    columns = max(len(row.maps) for row in rows)
    tallest = [max(_shape_ratio(m.values) for m in row.maps) for row in rows]
    with matplotlib.rc_context(STYLE):
        size = (1.6 * columns + 1.4, 1.6 * sum(tallest) + 0.5 * len(rows) + 0.7)
        figure = Figure(figsize=size, layout="compressed")
        axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=tallest)
        for row, cells in zip(rows, axes, strict=True):
            for cell in cells[len(row.maps) :]:
                cell.set_axis_off()
            for cell, one in zip(cells, row.maps, strict=False):
                image = _draw_map(cell, one, row.limits)
            if row.label:
                cells[0].set_ylabel(row.label)
            figure.colorbar(image, ax=list(cells), label=colour_label)
        figure.suptitle(title, fontsize=9)
        figure.supxlabel(f"{xlabel}{_undefined(rows)}", fontsize=9)
        figure.supylabel(ylabel, fontsize=9)
    return figure


def _shape_ratio(values: np.ndarray) -> float:
    return float(np.clip(values.shape[0] / values.shape[1], 0.4, 2.5))


def _undefined(rows: list[MapRow]) -> str:
    there = any(np.isnan(m.values).any() for row in rows for m in row.maps)
    return "; grey: not defined (see the log of the run)" if there else ""


def _draw_map(axes: Axes, one: Map, limits: tuple[float, float]) -> AxesImage:
    axes.set_facecolor("0.85")
    image = axes.imshow(one.values, cmap="magma", vmin=limits[0], vmax=limits[1])
    if one.mark is not None:
        row, column = one.mark
        place = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="cyan", lw=1.5)
        place.set_clip_on(False)
        axes.add_patch(place)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.set_title(one.title)
    return image


def tiles(images: np.ndarray, *, columns: int, title: str) -> Figure:
    """RGB images, (count, rows, columns, 3) within 0..1, side by side in rows of so many."""
    count = -(-len(images) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.85 * columns + 0.2, 0.85 * count + 0.5), layout="compressed")
        cells = figure.subplots(count, columns, squeeze=False).ravel()
        for cell in cells:
            cell.set_axis_off()
        for cell, image in zip(cells, images, strict=False):
            cell.imshow(image, interpolation="nearest")
        figure.suptitle(title, fontsize=9)
    return figure


def grid_of_grids(
    values: np.ndarray,
    *,
    limits: tuple[float, float],
    xlabel: str,
    ylabel: str,
    title: str,
    colour_label: str,
    most: int = 8,
) -> Figure:
    """Tile (r, c) is the map values[r, c] of a (rows, columns, rows, columns) array.

    Of more than `most` rows or columns of tiles, evenly spaced ones are drawn; each map is whole.
    Undefined values (NaN) are grey.
    """
    rows, columns = (range(0, n, -(-n // most)) for n in values.shape[:2])
    ratio = _shape_ratio(values[0, 0])
    with matplotlib.rc_context(STYLE):
        size = (0.6 * len(columns) + 1.2, 0.6 * ratio * len(rows) + 0.9)
        figure = Figure(figsize=size, layout="compressed")
        figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015)  # type: ignore[union-attr, call-arg]
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for r, line in zip(rows, axes, strict=True):
            line[0].set_ylabel(str(r), rotation=0, ha="right", va="center")
            for c, cell in zip(columns, line, strict=True):
                cell.set_facecolor("0.85")
                image = cell.imshow(values[r, c], vmin=limits[0], vmax=limits[1], cmap="viridis")
                cell.set(xticks=[], yticks=[])
        for c, cell in zip(columns, axes[-1], strict=True):
            cell.set_xlabel(str(c))
        figure.colorbar(image, ax=axes, label=colour_label, shrink=0.9)
        figure.suptitle(title, fontsize=9)
        figure.supxlabel(xlabel, fontsize=9)
        figure.supylabel(ylabel, fontsize=9)
    return figure


@dataclass(frozen=True)
class Line:
    """Values by depth. Lines of the same `group` share a colour."""

    values: np.ndarray
    label: str
    group: str
    dashed: bool = False


def names_of_models(model: str, other: str | None) -> dict[str, str]:
    """By role, how lines and headings call the models; the second is told apart from one of the same name."""
    second = f"{model} (other)" if other == model else other or ""
    return {"model": model, "other": second}


def depth_lines(
    lines: list[Line],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    x: list[np.ndarray] | None = None,
    from_zero: bool = True,
) -> Figure:
    """Lines over depth: over the block's number, or over `x` (one array a line).

    from_zero: the values' axis begins at 0, or at the least value if that is lower.
    """
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
        if from_zero:
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
    room = "\n\n"  # for the heading, above the names
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.15 * widest + 0.9, 1.4 * len(lines) + 0.7), layout="constrained")
        grid = figure.subplots(len(lines), widest, squeeze=False)
        for (heading, line), cells in zip(lines, grid, strict=True):
            for cell in cells:
                cell.set(xticks=[], yticks=[])
                cell.axis("off")
            above = cells[0].text(0, 1.22, heading, transform=cells[0].transAxes, fontsize=9)
            above.set_in_layout(False)  # a long heading would widen the first column
            for cell, (name, values) in zip(cells, line, strict=False):
                highest = np.nanmax(values) if np.isfinite(values).any() else 0
                scaled = values / highest if highest > 0 else np.full_like(values, np.nan)
                cell.axis("on")
                cell.set_facecolor("0.85")
                image = cell.imshow(scaled, cmap="magma", vmin=0, vmax=1)
                cell.set_title(f"{room if heading else ''}{name}", fontsize=7, pad=2)
        figure.colorbar(image, ax=grid, label="|gradient| / its maximum", shrink=0.6)
        figure.suptitle(title, fontsize=9)
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
