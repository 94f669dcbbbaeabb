"""What plots of lines share: their sizes, axes side by side, legends, grid lines and logarithmic axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from vitsee.plotting.style import canvas, legend, on_page, room


def plot_size(alone: tuple[float, float]) -> tuple[float, float]:
    """Size of a plot with one pair of axes; on a page, without its legend."""
    width = room(alone[0])
    return (width, float(np.clip(0.62 * width, 1.6, 2.3))) if on_page() else alone


def row_of_axes(count: int, alone: tuple[float, float], **shared: bool) -> tuple[Any, list[Axes]]:
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


def line_legend(figure: Any, axes: Axes, columns: int, **options: Any) -> None:
    """Add a legend for the lines of these axes below the figure."""
    legend(figure, *axes.get_legend_handles_labels(), columns, **options)


def grid_lines(axes: Axes) -> None:
    """Light grid lines behind the data."""
    axes.grid(color="0.92")
    axes.set_axisbelow(True)


def plain_labels(axis: Axis) -> None:
    """Few tick labels on a logarithmic axis, written as plain numbers."""
    low, high = axis.get_view_interval()
    subs = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def log_axis(axes: Axes, values: pd.Series) -> None:
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
