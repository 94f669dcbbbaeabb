"""The drawing vocabulary that analyses share, and the house style: a table in, a matplotlib figure out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageFilter
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

MARKERS = "os^Dv*Pp<>hX"
"""Of lines in one plot, in this order."""
_made: ContextVar[list[Figure | SubFigure] | None] = ContextVar("made", default=None)
_place: ContextVar[tuple[SubFigure, int] | None] = ContextVar("place", default=None)

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
    """What a figure of so many inches is drawn on: a Figure, or within `onto` the place on a larger one."""
    made, place = _made.get(), _place.get()
    figure: Figure | SubFigure = Figure(figsize=size, layout=layout)
    if made is not None:
        if place is not None and len(made) == place[1]:
            figure = place[0]
        made.append(figure)
    return figure


@contextmanager
def watching() -> Iterator[list[Figure | SubFigure]]:
    """Within the block every canvas is noted, in the order they are made."""
    made: list[Figure | SubFigure] = []
    token = _made.set(made)
    try:
        yield made
    finally:
        _made.reset(token)


@contextmanager
def onto(place: SubFigure, number: int) -> Iterator[None]:
    """Within the block the canvas of this number is `place`, a part of a larger figure."""
    token = _place.set((place, number))
    try:
        with watching():
            yield
    finally:
        _place.reset(token)


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
        figure = canvas(_size(len(columns), len(rows)), "constrained")
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
        _entitle(axes, title)
        figure.colorbar(image, label=colour_label, shrink=0.9)
        if np.isnan(grid).any():
            figure.supxlabel("grey: not defined (see the log of the run)", fontsize=8, color="0.35")
    return figure


def _entitle(axes: Axes, title: str) -> None:
    """A title of as many lines as it needs, dollars and all.

    Text that matplotlib wraps it measures as mathematics between dollars, whether or not it is to be drawn so.
    """
    axes.set_title(title.replace("$", r"\$"), wrap=True, parse_math=True)


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
    log: bool = False,
) -> Figure:
    """A line for each value of `line`: the mean of y at each x, and a band from its least to its largest.

    Where a mean is not defined (NaN) the line has a gap. level: a dashed horizontal line. log: x is
    logarithmic, else it is a share.
    """
    with matplotlib.rc_context(STYLE):
        figure = canvas((5.2, 3.6), "constrained")
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
        _entitle(axes, title)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
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
        figure = canvas((max(3.6, 2.1 * len(chosen)), 2.4), "constrained")
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
    """Maps side by side, with what they have in common."""

    maps: list[Map]
    label: str = ""


def maps(rows: list[MapRow], *, title: str, colour_label: str, xlabel: str, ylabel: str) -> Figure:
    """Rows of maps, row 0 of a map at the top, as in an image.

    Each map has a colour scale of its own, from 0 to its largest value; smaller ones are clipped for
    display only, undefined ones (NaN) are grey.
    """
    columns = max(len(row.maps) for row in rows)
    tallest = [max(_shape_ratio(m.values) for m in row.maps) for row in rows]
    with matplotlib.rc_context(STYLE):
        size = (max(3.5, 1.95 * columns + 0.4), sum(1.2 * r + 0.75 for r in tallest) + 0.45)
        figure = canvas(size)
        cells = figure.subplots(len(rows), columns, squeeze=False, height_ratios=tallest)
        for row, line in zip(rows, cells, strict=True):
            line[0].set_ylabel(f"{row.label}\n{ylabel}" if row.label else ylabel)
            for cell in line[len(row.maps) :]:
                cell.set_axis_off()
            for cell, one in zip(line, row.maps, strict=False):
                image = _draw_map(cell, one)
                cell.set_xlabel(xlabel)
                beside = cell.inset_axes((1.05, 0, 0.06, 1))  # as tall as the map
                figure.colorbar(image, cax=beside, ticks=MaxNLocator(nbins=4))
        figure.suptitle(f"{title}\ncolour: {colour_label}{_undefined(rows)}", fontsize=9)
    return figure


def _shape_ratio(values: np.ndarray) -> float:
    return float(np.clip(values.shape[0] / values.shape[1], 0.4, 2.5))


def _undefined(rows: list[MapRow]) -> str:
    there = any(np.isnan(m.values).any() for row in rows for m in row.maps)
    return "; grey: not defined (see the log of the run)" if there else ""


def _draw_map(axes: Axes, one: Map) -> AxesImage:
    axes.set_facecolor("0.85")
    highest = max(float(np.nanmax(one.values, initial=0)), 1e-12)
    image = axes.imshow(one.values, cmap="magma", vmin=0, vmax=highest, interpolation="nearest")
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
        figure = canvas((0.85 * columns + 0.2, 0.85 * count + 0.5), "compressed")
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
        figure = canvas(size, "compressed")
        figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015)
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
        figure = canvas((5.2, 3.9), "constrained")
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
        figure.legend(
            loc="outside lower center", ncols=2, fontsize=7, handlelength=4, frameon=False
        )
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
        figure = canvas((6.2, 2.2 * len(values) + 0.5), "constrained")
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
        figure = canvas((1.15 * widest + 0.9, 1.4 * len(lines) + 0.7), "constrained")
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
        figure = canvas((4.4, 3.4), "constrained")
        axes = figure.subplots()
        for (value, group), colour in zip(groups, colours, strict=True):
            ascending = np.sort(group[y].to_numpy())
            axes.plot(ascending, ".-", color=colour, label=names.format(value))
        _level(axes, table[reference])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])  # no dot is cut at the top
        _entitle(axes, title)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def dots(
    table: pd.DataFrame, *, x: str, y: str, reference: str, xlabel: str, ylabel: str, title: str
) -> Figure:
    """One dot a row, coloured by its place in ascending order of y among those of the same x."""
    rank = table.groupby(x)[y].rank(method="first", pct=True)
    with matplotlib.rc_context(STYLE):
        figure = canvas((4.4, 3.4), "constrained")
        axes = figure.subplots()
        axes.scatter(table[x], table[y], c=rank, cmap="viridis", vmin=0, vmax=1.1, s=14)
        _level(axes, table[reference])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])  # no dot is cut at the top
        _entitle(axes, title)
        axes.legend(loc="lower right", fontsize=8)
    return figure


def _level(axes: Axes, values: pd.Series) -> None:
    """A dashed line at what attention to all tokens alike would give."""
    for level in values.unique():
        axes.axhline(level, color="0.4", lw=0.8, ls="--", label="uniform attention")


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
    """y against x of each table by its name, with one standard error up and down as a band."""
    with matplotlib.rc_context(STYLE):
        figure = canvas((4.8, 3.6), "constrained")
        axes = figure.subplots()
        for i, (name, line) in enumerate(lines.items()):
            line = line.sort_values(x)
            (drawn,) = axes.plot(
                line[x], line[y], marker=MARKERS[i % 8], markersize=3.5, label=name
            )
            low, high = line[y] - line[error], line[y] + line[error]
            axes.fill_between(line[x], low, high, color=drawn.get_color(), alpha=0.2, lw=0)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _entitle(axes, title)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=min(2, len(lines)), fontsize=7)
    return figure


def image_pairs(
    pairs: list[tuple[np.ndarray, np.ndarray]], *, title: str, names: tuple[str, str]
) -> Figure:
    """Images (H, W, 3) in 0…1, each beside itself lit by a map (rows, columns) of weights.

    As the authors draw it: the map is enlarged smoothly, blurred by a patch, stretched to 0…1, and the
    image is darkened where it is small.
    """
    across = min(3, len(pairs))
    down = -(-len(pairs) // across)
    ratio = pairs[0][0].shape[0] / pairs[0][0].shape[1]
    with matplotlib.rc_context(STYLE):
        size = (2.4 * across + 0.1, 1.2 * ratio * down + 0.5)
        figure = canvas(size, "compressed")
        cells = figure.subplots(down, 2 * across, squeeze=False)
        for cell in cells.flat:
            cell.axis("off")
        for i, (image, weights) in enumerate(pairs):
            left, right = cells[i // across, 2 * (i % across) :][:2]
            left.imshow(image)
            right.imshow(image * _lit(weights, image.shape[:2])[..., None])
            if i < across:
                left.set_title(names[0], pad=2)
                right.set_title(names[1], pad=2)
        figure.suptitle(title, fontsize=9)
    return figure


def _lit(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map of weights as transparency of an image of this shape (H, W), 0…1."""
    scaled = PIL.Image.fromarray((weights / weights.max()).astype(np.float32))
    large = scaled.resize((shape[1], shape[0]), PIL.Image.Resampling.LANCZOS)
    radius = shape[0] / weights.shape[0]
    # Pillow blurs 8-bit images only.
    bytes_of = np.clip(np.nan_to_num(np.asarray(large)) * 255, 0, 255).astype(np.uint8)
    blurred = PIL.Image.fromarray(bytes_of).filter(PIL.ImageFilter.GaussianBlur(radius))
    values = np.asarray(blurred, dtype=float)
    spread = np.ptp(values)
    return (values - values.min()) / spread if spread else np.ones_like(values)


def training_curve(metrics: pd.DataFrame, name: str) -> Figure:
    """Loss of the training and accuracy on held-out images against the images seen.

    metrics: columns images, loss, test_accuracy.
    """
    figure = canvas((8.0, 3.2))
    axes = figure.subplots(1, 2)
    for axis, column, label in (
        (axes[0], "loss", "training loss"),
        (axes[1], "test_accuracy", "accuracy on held-out images"),
    ):
        axis.plot(metrics["images"], metrics[column])
        axis.set(xlabel="images seen", ylabel=label)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter(EngFormatter())
    axes[1].set_ylim(0, 1)
    figure.suptitle(name, parse_math=False)
    return figure


SCALED = {"train_images": "training images", "training_flops": "training FLOPs"}


def scaling(table: pd.DataFrame, data: str, columns: list[str]) -> Figure:
    """Accuracy against what the training took, a plot for each of these columns and a line a family of models.

    table: columns model, family, accuracy, se and those of SCALED. A family is called as its model of the
    shortest name is.
    """
    with matplotlib.rc_context(STYLE):
        figure = canvas((0.8 + 4.0 * len(columns), 3.8))
        every = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axes, column in zip(every, columns, strict=True):
            for i, (_, rows) in enumerate(table.groupby("family")):
                ordered = rows.sort_values(column)
                axes.errorbar(
                    ordered[column], ordered["accuracy"], ordered["se"],
                    marker=MARKERS[i % len(MARKERS)], markersize=4, linewidth=1.2, capsize=2,
                    label=min(rows["model"], key=len),
                )  # fmt: skip
            axes.set(xlabel=SCALED[column])
            _log_axis(axes, table[column])
            axes.grid(color="0.92")
            axes.set_axisbelow(True)
        every[0].set(ylabel=f"accuracy on held-out {data}", ylim=(0, 1))
        labels = every[0].get_legend_handles_labels()
        figure.legend(*labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _log_axis(axes: Axes, values: pd.Series) -> None:
    """A logarithmic x axis with few labels, or a note where there is nothing to show on it."""
    if not np.isfinite(values).any():
        axes.set_xticks([])
        axes.text(0.5, 0.5, "no model card", transform=axes.transAxes, ha="center", color="0.35")
        return
    decades = np.log10(values.max() / values.min())
    subs = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0) if decades < 1 else (1.0, 2.0, 5.0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=subs if decades < 2 else (1.0,)))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


VERDICTS = {
    "holds": ("✓", "#0072B2"),
    "does not hold": ("✗", "#D55E00"),
    "undecided": ("?", "0.35"),
    "not measured": ("–", "0.6"),
}


def scorecard(table: pd.DataFrame, title: str) -> Figure:
    """The claims with their verdicts, a row each: statement, verdict, statistic with interval, threshold.

    table: rows of claims.csv.
    """
    statements = [
        textwrap.wrap(f"{said} ({of})", 62)
        for said, of in zip(table["statement"], table["figure"], strict=True)
    ]
    heights = [0.06 + 0.14 * len(lines) for lines in statements]
    tall = sum(heights) + 0.75
    with matplotlib.rc_context(STYLE):
        figure = canvas((8.6, tall), None)
        columns = {
            "claim": 0.02,
            "verdict": 0.52,
            "statistic [95 % interval]": 0.65,
            "claimed": 0.92,
        }
        y = 1 - 0.22 / tall
        figure.text(0.02, y, title, weight="bold", va="center")
        y -= 0.3 / tall
        for name, x in columns.items():
            figure.text(x, y, name, fontsize=8, color="0.35", va="center")
        y -= 0.12 / tall
        for row, lines, height in zip(table.to_dict("records"), statements, heights, strict=True):
            mark, colour = VERDICTS[row["holds"]]
            middle = y - height / tall / 2
            cells = ("\n".join(lines), f"{mark}  {row['holds']}", _interval(row), _claimed(row))
            for x, cell, shade in zip(
                columns.values(), cells, ("0", colour, "0", "0"), strict=True
            ):
                figure.text(x, middle, cell, fontsize=8, va="center", color=shade)
            y -= height / tall
            figure.add_artist(Line2D((0.02, 0.98), (y, y), color="0.88", linewidth=0.6))
    return figure


def _interval(row: dict[Any, Any]) -> str:
    """The statistic and its interval in words."""
    if not np.isfinite(row["value"]):
        return ""
    interval = f" [{row['low']:.3g}, {row['high']:.3g}]" if np.isfinite(row["low"]) else ""
    return f"{row['value']:.3g}{interval}"


def _claimed(row: dict[Any, Any]) -> str:
    sign = ">" if "(above is claimed)" in row["statistic"] else "<"
    return f"{sign} {row['threshold']:.3g}"
