"""Maps over image locations, and images next to their maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageFilter
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from vitsee.plotting.style import STYLE, canvas, evenly_spaced, shape_ratio


def grids(
    table: pd.DataFrame,
    *,
    panel: str,
    row: str,
    column: str,
    value: str,
    colour_label: str,
    title: str,
    limits: tuple[float, float] | None = None,
    most: int = 6,
) -> Figure:
    """Maps over a grid of locations, row 0 at the top, each `panel` with its own colour scale, or with `limits`.

    At most `most` panels are drawn: the first, the last and evenly spaced ones between them.
    """
    every = table[panel].unique()
    chosen = evenly_spaced(len(every), most)
    with matplotlib.rc_context(STYLE):
        figure = canvas((max(3.6, 2.1 * len(chosen)), 2.4), "constrained")
        panels = figure.subplots(1, len(chosen), squeeze=False)[0]
        for axes, name in zip(panels, every[chosen], strict=True):
            cells = table[table[panel] == name].pivot(index=row, columns=column, values=value)
            axes.set_facecolor("0.85")
            low, high = limits or (None, None)
            image = axes.imshow(
                cells.to_numpy(float), cmap="viridis", interpolation="nearest", vmin=low, vmax=high
            )
            axes.set_title(name)
            axes.set(xticks=[], yticks=[])
            figure.colorbar(image, ax=axes, location="bottom", shrink=0.9)
        figure.suptitle(title, fontsize=9)
        figure.supxlabel(colour_label, fontsize=8)
    return figure


@dataclass(frozen=True)
class Map:
    """Values over a grid, (rows, columns), and an optional (row, column) to mark.

    masked: which cells to draw without their value, (rows, columns), such as those that noise explains.
    """

    values: np.ndarray
    title: str
    mark: tuple[int, int] | None = None
    masked: np.ndarray | None = None


@dataclass(frozen=True)
class MapRow:
    """Maps side by side, with a label for all of them."""

    maps: list[Map]
    label: str = ""


MASKED = ("#2a7f78", "green")
"""Colour of masked cells, which the colour map does not have, and its name in captions."""


def maps(
    rows: list[MapRow],
    *,
    title: str,
    colour_label: str,
    xlabel: str,
    ylabel: str,
    common: bool = True,
    least: float = 0.0,
) -> Figure:
    """Rows of maps, each map with row 0 at the top, as in an image.

    The colour scale goes from 0 to the largest value of all maps or, unless `common`, of each one, and at
    least to `least`: with some standard errors, noise stays dark. Negative values are clipped for display
    only; undefined values (NaN) are grey.
    """
    columns = max(len(row.maps) for row in rows)
    tallest = [max(shape_ratio(m.values) for m in row.maps) for row in rows]
    highest = max(least, *(_highest(m) for row in rows for m in row.maps))
    with matplotlib.rc_context(STYLE):
        wide = 1.55 * columns + 0.8 if common else 1.95 * columns + 0.4
        size = (max(3.5, wide), sum(1.2 * r + 0.75 for r in tallest) + 0.45)
        figure = canvas(size)
        cells = figure.subplots(len(rows), columns, squeeze=False, height_ratios=tallest)
        for row, line in zip(rows, cells, strict=True):
            line[0].set_ylabel(f"{row.label}\n{ylabel}" if row.label else ylabel)
            for cell in line[len(row.maps) :]:
                cell.set_axis_off()
            for cell, one in zip(line, row.maps, strict=False):
                image = _draw_map(cell, one, highest if common else max(least, _highest(one)))
                cell.set_xlabel(xlabel)
                if not common or one is row.maps[-1]:
                    beside = cell.inset_axes((1.05, 0, 0.06, 1))  # as tall as the map
                    figure.colorbar(image, cax=beside, ticks=MaxNLocator(nbins=4))
        figure.suptitle(f"{title}\nColour: {colour_label}{_undefined(rows)}", fontsize=9)
    return figure


def _undefined(rows: list[MapRow]) -> str:
    undefined = any(np.isnan(m.values).any() for row in rows for m in row.maps)
    return "; grey: undefined (see the log of the run)" if undefined else ""


def _highest(one: Map) -> float:
    return max(float(np.nanmax(one.values, initial=0)), 1e-12)


def _draw_map(axes: Axes, one: Map, highest: float) -> AxesImage:
    axes.set_facecolor("0.85")
    image = axes.imshow(one.values, cmap="magma", vmin=0, vmax=highest, interpolation="nearest")
    if one.masked is not None:
        over = np.ma.masked_where(~one.masked, np.zeros_like(one.values))
        axes.imshow(over, cmap=ListedColormap([MASKED[0]]), interpolation="nearest")
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
    """RGB images, (count, rows, columns, 3) in 0…1, with `columns` images per row."""
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

    At most `most` rows and columns of tiles are drawn, evenly spaced; each map is complete. Undefined
    values (NaN) are grey.
    """
    rows, columns = (range(0, n, -(-n // most)) for n in values.shape[:2])
    ratio = shape_ratio(values[0, 0])
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


def fields(rows: dict[str, dict[str, np.ndarray]], *, title: str, columns: int) -> Figure:
    """Maps by name, each scaled to its own maximum, in groups under a heading."""
    lines = [
        (heading if start == 0 else "", list(maps.items())[start : start + columns])
        for heading, maps in rows.items()
        for start in range(0, len(maps), columns)
    ]
    widest = max(len(line) for _, line in lines)
    room = "\n\n"  # leaves space for the heading above the names
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
        figure.colorbar(image, ax=grid, label="|Gradient| / its maximum", shrink=0.6)
        figure.suptitle(title, fontsize=9)
    return figure


def image_pairs(
    pairs: list[tuple[np.ndarray, np.ndarray]], *, title: str, names: tuple[str, str]
) -> Figure:
    """Images (H, W, 3) in 0…1, each next to a copy that is lit by a map (rows, columns) of weights.

    As in the authors' code, the map is upsampled smoothly, blurred over one patch and scaled to 0…1; the
    image is multiplied by it. Below it stand the weights that are black and fully lit.
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
            right.text(0.5, -0.03, _range(weights), transform=right.transAxes, **_BELOW)
            if i < across:
                left.set_title(names[0], pad=2)
                right.set_title(names[1], pad=2)
        figure.suptitle(title, fontsize=9)
    return figure


_BELOW: Any = {"ha": "center", "va": "top", "fontsize": 6.5, "color": "0.35"}


def _range(weights: np.ndarray) -> str:
    """The smallest and the largest weight, and how many times as large it is."""
    if np.isnan(weights).all():
        return "undefined"
    low, high = np.nanmin(weights), np.nanmax(weights)
    times = f" (× {high / low:.2g})" if low > 0 else ""
    return f"{low:.2g} … {high:.2g}{times}"


@dataclass(frozen=True)
class Heads:
    """An image, (H, W, 3) in 0…1, and the maps of several heads on it, (heads, rows, columns)."""

    label: str
    image: np.ndarray
    maps: np.ndarray


def heads(rows: list[Heads], *, title: str, overlay: bool, most: int = 12) -> Figure:
    """One row per image or layer: the image, then each head's map, brightest where its own weights are largest.

    overlay: the image lit by the map, as in `image_pairs`, not the map itself. At most `most` heads are
    drawn, evenly spaced. Undefined maps (NaN) are grey.
    """
    shown = evenly_spaced(max(len(row.maps) for row in rows), most)
    ratio = shape_ratio(rows[0].image[..., 0])
    with matplotlib.rc_context(STYLE):
        size = (1.15 * (len(shown) + 1) + 0.5, 1.15 * ratio * len(rows) + 0.6)
        figure = canvas((max(3.6, size[0]), size[1]), "compressed")
        cells = figure.subplots(len(rows), len(shown) + 1, squeeze=False)
        for i, (row, line) in enumerate(zip(rows, cells, strict=True)):
            for cell in line:
                cell.set(xticks=[], yticks=[], facecolor="0.85")
            line[0].imshow(row.image)
            line[0].set_ylabel(_short(row.label), fontsize=6)
            for cell, head in zip(line[1:], shown, strict=True):
                if head >= len(row.maps):
                    cell.axis("off")
                elif overlay:
                    cell.imshow(row.image * _lit(row.maps[head], row.image.shape[:2])[..., None])
                else:
                    cell.imshow(row.maps[head], cmap="magma", vmin=0, interpolation="nearest")
                if i == 0:
                    cell.set_title(f"head {head}", fontsize=8, pad=2)
        figure.suptitle(title, fontsize=9)
    return figure


def _short(name: str, most: int = 18) -> str:
    """The end of a long name, without its folders."""
    name = name.rpartition("/")[2]
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _lit(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map of weights as the brightness, 0…1, of an image of this shape (H, W)."""
    scaled = PIL.Image.fromarray((weights / weights.max()).astype(np.float32))
    large = scaled.resize((shape[1], shape[0]), PIL.Image.Resampling.LANCZOS)
    radius = shape[0] / weights.shape[0]
    # Pillow only blurs 8-bit images.
    bytes_of = np.clip(np.nan_to_num(np.asarray(large)) * 255, 0, 255).astype(np.uint8)
    blurred = PIL.Image.fromarray(bytes_of).filter(PIL.ImageFilter.GaussianBlur(radius))
    values = np.asarray(blurred, dtype=float)
    spread = np.ptp(values)
    return (values - values.min()) / spread if spread else np.ones_like(values)
