"""Maps over image locations, and images next to their maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageFilter
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from vitsee.plotting.style import (
    canvas,
    colour_bar,
    evenly_spaced,
    headline,
    look,
    on_page,
    room,
    shape_ratio,
    text_size,
)


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
    """Maps over a grid of locations, row 0 at the top; each `panel` has its own colour scale unless `limits` is given.

    At most `most` panels are drawn: the first, the last and evenly spaced ones between them.
    """
    every = table[panel].unique()
    chosen = evenly_spaced(len(every), most)
    shared = on_page() and limits is not None
    with look():
        across = _across(len(chosen), 1.05)
        down = -(-len(chosen) // across)
        width = room(max(3.6, 2.1 * across))
        figure = canvas(
            (width, down * (width / across + (0.25 if shared else 0.5)) if on_page() else 2.4)
        )
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for empty in panels[len(chosen) :]:
            empty.set_axis_off()
        for axes, name in zip(panels, every[chosen], strict=False):
            cells = table[table[panel] == name].pivot(index=row, columns=column, values=value)
            axes.set_facecolor("0.85")
            low, high = limits or (None, None)
            image = axes.imshow(
                cells.to_numpy(float), cmap="viridis", interpolation="nearest", vmin=low, vmax=high
            )
            axes.set_title(name)
            axes.set(xticks=[], yticks=[])
            if not shared:
                beside = {"location": "bottom", "shrink": 0.9, "ticks": MaxNLocator(nbins=3)}
                figure.colorbar(image, ax=axes, **beside)
        headline(figure, title)
        if shared:
            colour_bar(figure, image, list(panels), colour_label)
        else:
            figure.supxlabel(colour_label, fontsize=text_size(8))
    return figure


GAP = 0.06
"""Space between the images of a mosaic, as a fraction of their width."""
NAMED = 0.75
"""Minimum width in inches of a titled map on a page."""


@dataclass(frozen=True)
class Map:
    """Values over a grid, (rows, columns), and an optional (row, column) to mark.

    masked: which cells to draw without their value, (rows, columns), such as those within the noise.
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
"""Colour of masked cells, which is not in the colour map, and its name in captions."""


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

    The colour scale goes from 0 to the largest value of all maps or, unless `common`, of each map, and at least
    to `least`: a few standard errors keep noise dark. Negative values are clipped for display only; undefined
    values (NaN) are grey.
    """
    across = _across(max(len(row.maps) for row in rows), 1.5)
    rows = [
        MapRow(row.maps[start : start + across], row.label)
        for row in rows
        for start in range(0, len(row.maps), across)
    ]
    columns = max(len(row.maps) for row in rows)
    tallest = [max(shape_ratio(m.values) for m in row.maps) for row in rows]
    highest = max(least, *(_highest(m) for row in rows for m in row.maps))
    shared = common and on_page()
    with look():
        wide = 1.55 * columns + 0.8 if common else 1.95 * columns + 0.4
        size = (max(3.5, wide), sum(1.2 * r + 0.75 for r in tallest) + 0.45)
        if on_page():
            side = room(0) / columns - (0.3 if shared else 0.7)  # beside labels and colour bar
            size = (room(0), sum(side * r + 0.5 for r in tallest))
        figure = canvas(size)
        cells = figure.subplots(len(rows), columns, squeeze=False, height_ratios=tallest)
        for row, line in zip(rows, cells, strict=True):
            line[0].set_ylabel(f"{row.label}\n{ylabel}" if row.label else ylabel)
            for cell in line[len(row.maps) :]:
                cell.set_axis_off()
            for cell, one in zip(line, row.maps, strict=False):
                image = _draw_map(cell, one, highest if common else max(least, _highest(one)))
                cell.set_xlabel(xlabel)
                if not shared and (not common or one is row.maps[-1]):
                    beside = cell.inset_axes((1.05, 0, 0.06, 1))  # as tall as the map
                    figure.colorbar(image, cax=beside, ticks=MaxNLocator(nbins=4))
        undefined = _undefined(rows)
        if shared:
            colour_bar(figure, image, list(cells.flat), f"{colour_label}{undefined}")
        headline(figure, f"{title}\nColour: {colour_label}{undefined}")
    return figure


def _across(count: int, narrowest: float) -> int:
    """Number of plots side by side: all, or on a page as many as fit at this width."""
    if not on_page():
        return count
    down = -(-count // max(1, int(room(0) / narrowest)))
    return -(-count // down)


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
    lines = -(-len(images) // columns)
    with look():
        width = room(0.85 * columns + 0.2)
        figure = canvas((width, width * lines / columns + (0 if on_page() else 0.5)))
        _mosaic(figure.subplots(), list(images), columns)
        headline(figure, title)
    return figure


def _mosaic(
    axes: Axes, images: Sequence[np.ndarray], columns: int, above: float = 0.0, **colours: Any
) -> list[AxesImage]:
    """Images of the same shape in rows of `columns`, each one unit wide, with this much room above each row."""
    ratio = images[0].shape[0] / images[0].shape[1]
    colours.setdefault("interpolation", "nearest")
    drawn = []
    for i, image in enumerate(images):
        left, top = i % columns * (1 + GAP), i // columns * (ratio + GAP + above) + above
        extent = (left, left + 1, top + ratio, top)
        drawn.append(axes.imshow(image, extent=extent, **colours))
    lines = -(-len(images) // columns)
    axes.set(xlim=(0, columns * (1 + GAP) - GAP), ylim=(lines * (ratio + GAP + above) - GAP, 0))
    axes.set_axis_off()
    return drawn


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
    ratio = values.shape[2] / values.shape[3]
    with look():
        width = room(0.6 * len(columns) + 1.2)
        tile = (width - (0.5 if on_page() else 1.2)) / len(columns)
        figure = canvas((width, tile * ratio * len(rows) + (0.4 if on_page() else 0.9)))
        axes = figure.subplots()
        shown = [values[r, c] for r in rows for c in columns]
        drawn = _mosaic(
            axes, shown, len(columns), vmin=limits[0], vmax=limits[1], cmap=_greyed("viridis")
        )
        axes.set_axis_on()
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        for axis, places, side in ((axes.xaxis, columns, 1.0), (axes.yaxis, rows, ratio)):
            middles = side / 2 + np.arange(len(places)) * (side + GAP)
            axis.set_ticks(middles, labels=[str(place) for place in places])
        axes.set(xlabel=xlabel, ylabel=ylabel)
        colour_bar(figure, drawn[0], axes, colour_label, shrink=0.9)
        headline(figure, title)
    return figure


def _greyed(name: str) -> Colormap:
    """The named colour map, with grey for undefined values."""
    return matplotlib.colormaps[name].with_extremes(bad="0.85")


def fields(rows: dict[str, dict[str, np.ndarray]], *, title: str, columns: int) -> Figure:
    """Maps by name, each scaled to its own maximum, in groups under headings.

    columns: the maximum number of maps per row; on a page, as many as their names leave room for.
    """
    most = max(len(maps) for maps in rows.values())
    across = _across(most, NAMED) if on_page() else min(most, columns)
    lines = [-(-len(maps) // across) for maps in rows.values()]
    with look():
        width = room(1.15 * across + 0.9)
        side = width / across / (1 + GAP) if on_page() else 1.15
        first = next(iter(next(iter(rows.values())).values()))
        ratio = first.shape[0] / first.shape[1]
        above = 0.15 / side
        heights = [count * side * (ratio + GAP + above) for count in lines]
        figure = canvas((width, sum(heights) + (0.05 if on_page() else 0.7)))
        groups = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
        for (heading, maps), axes in zip(rows.items(), groups, strict=True):
            colours: dict[str, Any] = {"cmap": _greyed("magma"), "vmin": 0, "vmax": 1}
            scaled = [_scaled(values) for values in maps.values()]
            drawn = _mosaic(axes, scaled, across, above, **colours)
            for image, name in zip(drawn, maps, strict=True):
                left, right, _, top = image.get_extent()
                axes.text((left + right) / 2, top - 0.02, name, ha="center", fontsize=7)
            if not on_page() or len(rows) > 1:
                axes.set_title(heading, loc="left")
        colour_bar(figure, drawn[0], list(groups), "|Gradient| / its maximum", shrink=0.6)
        headline(figure, title)
    return figure


def _scaled(values: np.ndarray) -> np.ndarray:
    """A map over its maximum; NaN if that is not positive."""
    highest = np.nanmax(values) if np.isfinite(values).any() else 0
    return values / highest if highest > 0 else np.full_like(values, np.nan)


def image_pairs(
    pairs: list[tuple[np.ndarray, np.ndarray]], *, title: str, names: tuple[str, str]
) -> Figure:
    """Images (H, W, 3) in 0…1, each next to a copy that is lit by a map (rows, columns) of weights.

    As in the authors' code, the map is upsampled smoothly, blurred over one patch and scaled to 0…1; the
    image is multiplied by it. The weights of black and of fully lit patches are written below.
    """
    across = min(6 if room(0) > 6 and len(pairs) > 6 else 3, len(pairs))
    down = -(-len(pairs) // across)
    ratio = pairs[0][0].shape[0] / pairs[0][0].shape[1]
    with look():
        width = room(2.4 * across + 0.1)
        side = width / 2 / across
        above = 0.15 / side
        figure = canvas((width, side * (ratio + above) * down + (0.35 if on_page() else 0.65)))
        axes = figure.subplots()
        shown = [
            one
            for image, weights in pairs
            for one in (image, image * _lit(weights, image.shape[:2])[..., None])
        ]
        drawn = _mosaic(axes, shown, 2 * across, above, interpolation="auto")
        for image, name in zip(drawn[: 2 * across], names * across, strict=False):
            left, right, _, top = image.get_extent()
            axes.text((left + right) / 2, top - 0.03, name, ha="center")
        for image, (_, weights) in zip(drawn[1::2], pairs, strict=True):
            _, right, bottom, _ = image.get_extent()
            axes.text(right, bottom + 0.03, _range(weights), **_BELOW, fontsize=text_size(6.5))
        headline(figure, title)
    return figure


_BELOW: Any = {"ha": "right", "va": "top", "color": "0.35"}


def _range(weights: np.ndarray) -> str:
    """The smallest weight, the largest, and their ratio."""
    if np.isnan(weights).all():
        return "undefined"
    low, high = np.nanmin(weights), np.nanmax(weights)
    if low > 0 and on_page():  # there is no room for more
        return f"× {high / low:.2g}"
    times = f" (× {high / low:.2g})" if low > 0 else ""
    return f"{low:.2g} … {high:.2g}{times}"


@dataclass(frozen=True)
class Heads:
    """An image, (H, W, 3) in 0…1, and the maps of several heads on it, (heads, rows, columns)."""

    label: str
    image: np.ndarray
    maps: np.ndarray


def heads(rows: list[Heads], *, title: str, overlay: bool, most: int = 12) -> Figure:
    """One row per image or layer: the image, then each head's map, brightest at its largest weights.

    overlay: draw the image lit by the map, as in `image_pairs`, instead of the map. At most `most` heads are
    drawn, evenly spaced. Where a map is undefined (NaN), it is grey and the image unlit.
    """
    shown = [evenly_spaced(len(row.maps), most) for row in rows]
    across = 1 + max(map(len, shown))
    ratio = shape_ratio(rows[0].image[..., 0])
    with look():
        size = (1.15 * across + 0.5, 1.15 * ratio * len(rows) + 0.6)
        figure = canvas((max(3.6, size[0]), size[1]), "compressed")
        cells = figure.subplots(len(rows), across, squeeze=False)
        for i, (row, line) in enumerate(zip(rows, cells, strict=True)):
            for cell in line:
                cell.set(xticks=[], yticks=[], facecolor="0.85")
            for cell in line[1 + len(shown[i]) :]:
                cell.axis("off")
            line[0].imshow(row.image)
            line[0].set_ylabel(_short(row.label), fontsize=text_size(6))
            for cell, head in zip(line[1:], shown[i], strict=False):
                if overlay:
                    cell.imshow(row.image * _lit(row.maps[head], row.image.shape[:2])[..., None])
                else:
                    cell.imshow(row.maps[head], cmap="magma", vmin=0, interpolation="nearest")
                if i == 0 or not np.array_equal(shown[i], shown[i - 1]):
                    cell.set_title(f"head {head}", fontsize=text_size(8), pad=2)
        headline(figure, title)
    return figure


def _short(name: str, most: int = 18) -> str:
    """The end of a long name, without its folders."""
    name = name.rpartition("/")[2]
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _lit(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map of weights as the brightness, 0…1, of an image with this shape (H, W)."""
    known = np.nan_to_num(weights)
    scaled = PIL.Image.fromarray((known / (known.max() or 1)).astype(np.float32))
    large = scaled.resize((shape[1], shape[0]), PIL.Image.Resampling.LANCZOS)
    radius = shape[0] / weights.shape[0]
    # Pillow only blurs 8-bit images.
    bytes_of = np.clip(np.nan_to_num(np.asarray(large)) * 255, 0, 255).astype(np.uint8)
    blurred = PIL.Image.fromarray(bytes_of).filter(PIL.ImageFilter.GaussianBlur(radius))
    values = np.asarray(blurred, dtype=float)
    spread = np.ptp(values)
    return (values - values.min()) / spread if spread else np.ones_like(values)
