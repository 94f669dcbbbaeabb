"""Accuracy of linear probes and of models: by depth, by training images and compute, and during training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from vitsee.plotting.axes import grid_lines, line_legend, log_axis, plot_size, row_of_axes
from vitsee.plotting.style import MARKERS, canvas, entitle, look, room

if TYPE_CHECKING:
    from vitsee.setting import Labels


def protocol(table: pd.DataFrame) -> str:
    """How the probes were trained, for a title or legend."""
    shots, seeds = int(table["shots"].iloc[0]), table["seed"].nunique()
    times = f", {seeds} draws" if seeds > 1 else ""
    return f"{shots}-shot{times}" if shots else "all training images"


FEATURES = {
    "cls": "class token",
    "gap": "mean of all tokens",
    "gap_patches": "mean of patch tokens",
    "first": "first token",
    "each_token": "single tokens (mean)",
}


def probes_by_training(results: list[tuple[pd.DataFrame, Labels]]) -> Figure:
    """Accuracy of the deepest layer against the number of training images, one line per model family.

    A family is named after its model with the shortest name (Dosovitskiy et al. 2021, Fig. 4).
    """
    families: dict[str | None, str] = {}
    for _, labels in results:
        families[labels.family] = min(
            families.get(labels.family, labels.model), labels.model, key=len
        )
    features: dict[str | None, set[str]] = {}
    for table, labels in results:
        features.setdefault(labels.family, set()).update(table["features"])
    several = any(len(names) > 1 for names in features.values())
    parts = []
    for table, labels in results:
        depth = table["depth"].fillna(0)
        deepest = table[table["layer"] == table["layer"][depth == depth.max()].iloc[-1]]
        names = deepest["features"].map(
            lambda name, l=labels: families[l.family] + (f", {FEATURES[name]}" if several else "")
        )
        percent = 100 * deepest["accuracy"]
        parts.append(deepest.assign(line=names, percent=percent, images=labels.train_images))
    table, labels = results[0]
    title = f"{protocol(table)}, {labels.data}"
    return _accuracies(parts, title, x="images", xlabel="Number of training images", log=True)


def probes_by_depth(
    results: list[tuple[pd.DataFrame, Labels]], data: list[str], common_data: str
) -> Figure:
    """Accuracy by depth, one line per feature and result, labelled by what differs between them.

    data: words for the data of each result where they differ, else empty. common_data: words for the title where not.
    """
    models = {labels.model for _, labels in results}
    protocols = {protocol(table) for table, _ in results}
    features = {name for table, _ in results for name in table["features"]}
    parts = []
    for (table, labels), images in zip(results, data, strict=True):
        for feature, part in table.groupby("features", sort=False):
            words = [labels.model] if len(models) > 1 else []
            words += [FEATURES[str(feature)]] if len(features) > 1 or not words else []
            words += [protocol(table)] if len(protocols) > 1 else []
            words += [images] if images else []
            parts.append(
                part.assign(
                    line=", ".join(words), percent=100 * part["accuracy"], place=_places(part)
                )
            )
    common = [next(iter(values)) for values in (models, protocols) if len(values) == 1]
    common += [common_data] if common_data else []
    return _accuracies(parts, ", ".join(common), x="place", xlabel="Depth (fraction of blocks)")


def _places(table: pd.DataFrame) -> pd.Series:
    """The depth of each row's layer. Several layers of a block are spread evenly up to the depth of the block.

    Those before the first block are spread from 0 on, together with those of the first block.
    """
    layers = table.drop_duplicates("layer").set_index("layer")["depth"]
    depths = np.unique(layers.dropna())
    step = np.diff(depths).min() if len(depths) > 1 else depths.min(initial=1.0)
    within = layers.groupby(layers)
    size = within.transform("size")
    places = layers - step * (size - 1 - within.cumcount()) / size
    if (layers == 0).any():
        first = depths[depths > 0].min(initial=1.0)
        places[layers <= first] = np.linspace(0, first, (layers <= first).sum())
    return table["layer"].map(places)


def _accuracies(
    parts: list[pd.DataFrame], title: str, *, x: str, xlabel: str, log: bool = False
) -> Figure:
    """One line per value of line: the mean of percent at each x, with a band from minimum to maximum.

    Undefined means (NaN) leave a gap. The chance level is dashed if all parts share it. log: whether x is
    logarithmic; otherwise it is a fraction.
    """
    table = pd.concat(parts)
    classes = table["classes"].unique()
    with look():
        figure = canvas(plot_size((5.2, 3.6)))
        axes = figure.subplots()
        for i, name in enumerate(table["line"].unique()):
            values = table[table["line"] == name].groupby(x)["percent"]
            mean = values.agg(lambda of_one: of_one.mean(skipna=False))
            marker = MARKERS[i % len(MARKERS)]
            (drawn,) = axes.plot(mean.index, mean, marker=marker, markersize=3.5, label=name)
            axes.fill_between(
                mean.index, values.min(), values.max(), color=drawn.get_color(), alpha=0.2, lw=0
            )
        if len(classes) == 1:
            chance = 100 / int(classes[0])
            axes.axhline(chance, color="0.5", linestyle="--", linewidth=0.8, label="chance")
        axes.set(xlabel=xlabel, ylabel="Test accuracy (%)", ylim=(0, None))
        if log:
            log_axis(axes, table[x])
        else:
            axes.set_xlim(0, 1.03)
        entitle(axes, f"Linear probes: {title}")
        grid_lines(axes)
        line_legend(figure, axes, 2, frameon=False, fontsize=8)
    return figure


SCALED = {"train_images": "Number of training images", "training_flops": "Training FLOPs"}


def scaling(table: pd.DataFrame, data: str, column: str) -> Figure:
    """Accuracy against training images or compute: one line per model family.

    table: columns model, family, accuracy, se, and the columns in SCALED. A family is named after its model with
    the shortest name.
    """
    with look():
        figure, (axes,) = row_of_axes(1, (4.8, 3.8))
        for i, (_, rows) in enumerate(table.groupby("family")):
            ordered = rows.sort_values(column)
            axes.errorbar(
                ordered[column], 100 * ordered["accuracy"], 100 * ordered["se"],
                marker=MARKERS[i % len(MARKERS)], markersize=4, linewidth=1.2, capsize=2,
                label=min(rows["model"], key=len),
            )  # fmt: skip
        axes.set(xlabel=SCALED[column], ylabel=f"Accuracy on held-out {data} (%)", ylim=(0, 100))
        log_axis(axes, table[column])
        grid_lines(axes)
        line_legend(figure, axes, 3, frameon=False, fontsize=8)
    return figure


def accuracies(table: pd.DataFrame, data: str) -> Figure:
    """Accuracy of each model with its standard error, in the order of the table.

    table: columns model, accuracy, se.
    """
    with look():
        figure = canvas((room(3.4), 0.9 + 0.28 * max(4, len(table))))
        axes = figure.subplots()
        places = range(len(table))
        percent, error = 100 * table["accuracy"], 100 * table["se"]
        axes.errorbar(percent, places, xerr=error, fmt="o", markersize=4, capsize=2)
        axes.set_yticks(places, table["model"])
        axes.set(xlabel=f"Accuracy on held-out {data} (%)", xlim=(0, 100))
        axes.set_ylim(len(table) - 0.5, -0.5)
        grid_lines(axes)
    return figure


def training_curve(name: str, metrics: pd.DataFrame, heads: pd.DataFrame | None = None) -> Figure:
    """Training loss, accuracy on held-out images and each head's attention distance, against images seen.

    metrics: columns images, loss, test_accuracy. heads: columns images, block, head, distance (relative to
    uniform attention); None for a model without attention.
    """
    figure = canvas((8.0 if heads is None else 12.0, 3.2))
    axes = figure.subplots(1, 2 if heads is None else 3)
    dot = {"marker": "o"} if len(metrics) == 1 else {}  # a line of one point is not seen
    axes[0].plot(metrics["images"], metrics["loss"], **dot)
    axes[0].set_ylabel("Training loss")
    axes[1].plot(metrics["images"], 100 * metrics["test_accuracy"], **dot)
    axes[1].set(ylabel="Accuracy on held-out images (%)", ylim=(0, 100))
    if heads is not None:
        last = max(1, heads["block"].max())
        for _, line in heads.groupby(["block", "head"]):
            block, head = line[["block", "head"]].iloc[0]
            named = {"label": f"block {block}"} if head == 0 and block in (0, last) else {}
            colour = matplotlib.colormaps["viridis"](0.9 * block / last)
            axes[2].plot(
                line["images"], line["distance"], color=colour, linewidth=0.8, **named, **dot
            )
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
