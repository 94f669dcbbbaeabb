"""Draws the figures of a comparison from its CSVs. Does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.cluster import hierarchy

from vitsee.comparing import record
from vitsee.comparing.measures import MEASURES
from vitsee.comparing.ordering import arranged
from vitsee.comparing.tables import COLUMNS
from vitsee.errors import UserError
from vitsee.io.tidy import wrong
from vitsee.parallel.interrupt import Interruptible
from vitsee.plotting import heatmaps, model_maps
from vitsee.results.folder import PNG, Formats, Results

GROUPS = 10
"""The largest number of groups that the map has colours for."""


def draw(folder: Path, *, formats: Formats = PNG) -> list[Path]:
    """Draw the figures of a comparison; return the files written. Raises UserError if it is not finished."""
    with Interruptible():  # matplotlib's callbacks would swallow a Ctrl-C
        return Results(folder).save_figures(figures(folder), formats=formats)


def figures(folder: Path) -> dict[str, Figure]:
    """Return the figures of a comparison by name. Raises UserError if it is damaged or not finished."""
    about, tables = read(folder)
    atlas, shown = tables["atlas"], "calibrated" if about["calibrated"] else "value"
    measure = MEASURES[about["question"]["measure"]].label
    label = f"calibrated {measure}" if about["calibrated"] else measure
    layers = about["question"]["layers"]
    at = {"all": "largest over pairs of layers", "last": "last layers"}.get(
        layers, f"largest over pairs of {layers}"
    )
    data = f"{about['images']:,} images of {about['dataset']}"
    of = tables["compare"] if len(atlas) == 1 else atlas
    lowest = np.nanmin(of[shown].to_numpy(float), initial=0)  # RSA and unbiased CKA may be below 0
    limits = (float(np.floor(10 * lowest) / 10), 1.0)
    drawn: dict[str, Figure] = {}
    if len(atlas) == 1:
        one = atlas.iloc[0]
        drawn["compare"] = heatmaps.heatmap(
            tables["compare"],
            x="other_layer",
            y="model_layer",
            value=shown,
            limits=limits,
            xlabel=f"Layers {one['other']}",
            ylabel=f"Layers {one['model']}",
            title=data,
            colour_label=label,
        )
    if about["first"] is not None:
        drawn["atlas"] = model_maps.to_one(
            atlas["other"].tolist(),
            atlas[shown].to_numpy(float),
            atlas["max_high"].to_numpy(float) * (shown == "value"),
            limits=limits,
            xlabel=f"{label} with {about['first']}\n({at})",
            title=data,
        )
        return drawn
    found = arranged(atlas, shown)
    drawn["atlas"] = model_maps.clustered(
        found.names,
        found.similarity,
        found.tree,
        limits=limits,
        title=f"{len(found.names)} models, {data}",
        colour_label=f"{label}, {at}",
    )
    cut = hierarchy.fcluster(found.tree, max(1, min(GROUPS, len(found.names) // 3)), "maxclust")
    drawn["atlas_map"] = model_maps.in_the_plane(
        found.names,
        found.places,
        [int(cut[leaf]) for leaf in found.leaves],
        title=f"{len(found.names)} models, {data}",
        note=f"Distance: 1 - {label}, {at}\nStress {found.stress:.2f}. Colours: groups of the tree",
    )
    return drawn


def read(folder: Path) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Return the record and the tables of a comparison. Raises UserError if it is damaged or not finished."""
    about = record.load(folder)
    if not about["finished"]:
        raise UserError(f"{folder} is not finished; repeat the same `vitsee compare`")
    question = about["question"]
    if question.get("measure") not in MEASURES or not isinstance(question.get("layers"), str):
        raise wrong(folder / record.NAME, "it names no measure or no layers")
    return about, Results(folder).tables(COLUMNS)
