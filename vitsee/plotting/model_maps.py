"""Figures of many models: a clustered heatmap with its tree, a map in the plane, and similarities to one model."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from scipy.cluster import hierarchy

from vitsee.plotting.style import STYLE, canvas, entitle

LONGEST = 40
"""Maximum length of a model's name in figures."""


def clustered(
    names: Sequence[str],
    similarity: np.ndarray,
    tree: np.ndarray,
    *,
    limits: tuple[float, float],
    title: str,
    colour_label: str,
) -> Figure:
    """Heatmap of models x models, (M, M), in the order of the tree's leaves, with the tree above.

    tree: SciPy's linkage. The height of a fork is the mean distance between the models on either side. Undefined
    values (NaN) are grey.
    """
    count = len(names)
    side = float(np.clip(0.11 * count, 2.6, 16))
    font = float(np.clip(72 * 0.8 * side / count, 3.5, 8))
    room = 0.6 * font / 72 * max(len(short(name)) for name in names) + 0.3
    with matplotlib.rc_context(STYLE):
        figure = canvas((side + room + 1.3, side * 1.25 + room + 0.5), "constrained")
        above, below = figure.subplots(2, 1, height_ratios=[0.2, 1])
        _draw_tree(above, tree)
        below.set_facecolor("0.85")
        image = below.imshow(
            similarity, cmap="magma", vmin=limits[0], vmax=limits[1], interpolation="nearest",
            aspect="auto",
        )  # fmt: skip
        words = [short(name) for name in names]
        below.set_xticks(range(count), labels=words, rotation=90, fontsize=font)
        below.set_yticks(range(count), labels=words, fontsize=font)
        below.tick_params(length=2 if count < 50 else 0)
        if count <= 12:
            _write_values(below, similarity, limits)
        entitle(above, title)
        figure.colorbar(image, ax=below, label=colour_label, shrink=0.8)
    return figure


def _draw_tree(axes: Axes, tree: np.ndarray) -> None:
    """The tree over columns 0, 1, …: SciPy puts leaf k at 10 k + 5."""
    drawn = hierarchy.dendrogram(tree, no_plot=True, count_sort=False)
    forks = [
        np.column_stack([(np.array(x) - 5) / 10, y])
        for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True)
    ]
    axes.add_collection(LineCollection(forks, colors="0.3", linewidths=0.8))
    highest = max(float(tree[:, 2].max()), 1e-9)
    axes.set(xlim=(-0.5, len(tree) + 0.5), ylim=(0, 1.05 * highest), xticks=[])
    axes.set_ylabel("Distance")
    for spine in ("top", "right", "bottom"):
        axes.spines[spine].set_visible(False)


def _write_values(axes: Axes, values: np.ndarray, limits: tuple[float, float]) -> None:
    middle = sum(limits) / 2
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value) and row != column:
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=6,
                color="white" if value < middle else "black",
            )  # fmt: skip


def in_the_plane(
    names: Sequence[str], places: np.ndarray, groups: Sequence[int], *, title: str, note: str
) -> Figure:
    """Models as points, (M, 2), coloured by group, labelled where labels do not overlap."""
    with matplotlib.rc_context(STYLE):
        figure = canvas((6.4, 5.2) if len(names) <= 40 else (10, 8), "constrained")
        axes = figure.subplots()
        colours = matplotlib.colormaps["tab10"]
        axes.scatter(
            *places.T, c=[colours(group % 10) for group in groups], s=24 if len(names) <= 40 else 12
        )
        axes.set(xlabel="First axis", ylabel="Second axis")
        axes.margins(0.12)
        axes.set_aspect("equal", adjustable="datalim")
        entitle(axes, title)
        below = figure.supxlabel(f"{note}\n", fontsize=8, color="0.35")
        if left_out := _label(figure, axes, names, places):
            below.set_text(f"{note}\nNot labelled for lack of room: {left_out}")
    return figure


_AROUND = (
    (5, 0, "left", "center"),
    (-5, 0, "right", "center"),
    (0, 5, "center", "bottom"),
    (0, -5, "center", "top"),
    (4, 4, "left", "bottom"),
    (4, -4, "left", "top"),
    (-4, 4, "right", "bottom"),
    (-4, -4, "right", "top"),
)
"""Possible positions of a label: offset in points, and alignment of its text."""


def _label(figure: Figure, axes: Axes, names: Sequence[str], places: np.ndarray) -> int:
    """Label points, each on the first side with room; return the number of points without any."""
    figure.draw_without_rendering()
    frame, left_out = axes.get_window_extent(), 0
    taken: list[Bbox] = []
    points = axes.transData.transform(places)
    font = 7 if len(names) <= 40 else 5
    for name, place in zip(names, places, strict=True):
        for x, y, horizontal, vertical in _AROUND:
            text = axes.annotate(
                short(name), place, (x, y), textcoords="offset points", fontsize=font,
                ha=horizontal, va=vertical,
            )  # fmt: skip
            box = text.get_window_extent()
            inside = frame.containsx(box.x0) and frame.containsx(box.x1)
            covers = any(box.overlaps(other) for other in taken)
            if inside and not covers and not box.count_contains(points):
                taken.append(box)
                break
            text.remove()
        else:
            left_out += 1
    return left_out


def to_one(
    names: Sequence[str],
    values: np.ndarray,
    highs: np.ndarray,
    *,
    limits: tuple[float, float],
    xlabel: str,
    title: str,
) -> Figure:
    """Similarity of each model to one model, as dots from most to least similar, with ticks at the null's 95 %.

    Models of undefined similarity are at the bottom.
    """
    order = np.argsort(np.where(np.isnan(values), -np.inf, values), kind="stable")
    with matplotlib.rc_context(STYLE):
        figure = canvas((5.6, float(np.clip(0.22 * len(names) + 1.1, 1.8, 22))), "constrained")
        axes = figure.subplots()
        rows = np.arange(len(names))
        axes.hlines(rows, limits[0], values[order], color="0.85", linewidth=1)
        axes.plot(values[order], rows, "o", markersize=4)
        if np.isfinite(highs).any():
            axes.plot(highs[order], rows, "|", color="0.35", markersize=8, label="95 % of the null")
            axes.legend(loc="lower right", frameon=False)
        axes.set_yticks(rows, labels=[_shown(names[i], values[i]) for i in order])
        axes.set(xlim=limits, xlabel=xlabel)
        entitle(axes, title)
    return figure


def _shown(name: str, value: float) -> str:
    return f"{short(name)} (undefined)" if np.isnan(value) else short(name)


def short(name: str) -> str:
    """The name, with its middle left out if it is long."""
    keep = (LONGEST - 1) // 2
    return name if len(name) <= LONGEST else f"{name[:keep]}…{name[-keep:]}"
