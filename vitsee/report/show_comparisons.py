"""Prepares comparisons of many models for a report's template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vitsee.comparing import drawing, tables
from vitsee.comparing.measures import MEASURES
from vitsee.comparing.ordering import arranged
from vitsee.io.files import visible
from vitsee.report.assets import PageFiles, packed, packed_bytes

UNDEFINED = 255
"""The byte for an undefined similarity; other bytes are 254 times the similarity, which is between 0 and 1."""


def show_comparison(folder: Path, files: PageFiles, anchor: str) -> dict[str, Any]:
    """Return the template's data for a comparison. Raises UserError if it is damaged or not finished."""
    about, tables_by_name = drawing.read(folder)
    measure = MEASURES[about["question"]["measure"]].label
    images = {path.stem: image for path in visible(folder, ".png") if (image := files.image(path))}
    known = {name: folder / f"{name}.csv" for name in tables_by_name}
    return {
        "anchor": anchor,
        "title": f"{measure} of {len(about['models'])} models",
        "data": f"{about['images']:,} images of {about['dataset']}",
        "identity": folder.name.rpartition("-")[2],
        "path": str(folder),
        "images": images,
        "map": None if about["first"] else atlas_map(about, tables_by_name, measure),
        "parameters": [(name, str(value)) for name, value in about["question"].items() if value],
        "tables": [
            files.download(path)
            | {"rows": len(tables_by_name[name]), "columns": list(tables_by_name[name])}
            for name, path in known.items()
        ],
    }


def atlas_map(
    about: dict[str, Any], tables_by_name: dict[str, pd.DataFrame], measure: str
) -> dict[str, Any]:
    """Return the models' similarities as a map, with the similarities of all layers of each pair.

    pairs: for each model and each model after it, in the order of the map, the bytes for layers of the first (rows)
    by layers of the second.
    """
    column = "calibrated" if about["calibrated"] else "value"
    label = f"calibrated {measure}" if about["calibrated"] else measure
    order = arranged(tables_by_name["atlas"], column)
    layers = {model["name"]: model["layers"] for model in about["models"]}
    pairs = tables.pairs_of(tables_by_name["compare"], layers)
    cells = []
    for i, model in enumerate(order.names):
        for other in order.names[i + 1 :]:
            pair = pairs.get((model, other)) or pairs[other, model].turned()
            value = pair.cells["value"]
            scaled = np.round(np.clip(np.nan_to_num(value), 0, 1) * 254)
            cells.append(np.where(np.isnan(value), UNDEFINED, scaled).astype(np.uint8).ravel())
    return {
        "label": label,
        "limits": (0, 1),
        "axis": "Tree position of each",
        "rows": order.names,
        "columns": order.names,
        "across": "model",
        "up": "model",
        "values": packed(order.similarity),
        "errors": "",
        "layers": [layers[name] for name in order.names],
        "pairs": packed_bytes(np.concatenate(cells)),
        "of_layers": measure,
    }
