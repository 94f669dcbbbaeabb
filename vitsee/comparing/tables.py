"""The tables of a comparison: `compare`, one row per pair of layers, and `atlas`, one per pair of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vitsee.comparing.nulls import calibrated
from vitsee.comparing.similarity import Cells
from vitsee.io.tidy import Error, Table, Whole

CELLS = ("value", "se", "null_mean", "null_high", "p", "p_max", "max_high")
"""Columns for a pair of layers; all but the first two are NaN without a null."""

COLUMNS = {
    "compare": Table(
        {
            **dict.fromkeys(("model", "model_layer", "other", "other_layer", "measure"), str),
            **{"value": float, "se": Error, "null_mean": float, "null_high": float},
            **{"p": float, "p_max": float, "max_high": float, "calibrated": float},
            "minibatches": Whole(1),
        },
        keys=("model", "model_layer", "other", "other_layer"),
    ),
    "atlas": Table(
        {
            **{"model": str, "other": str, "measure": str, "value": float},
            **{"at_model_layer": str, "at_other_layer": str},
            **{"mean": float, "p_max": float, "max_high": float, "calibrated": float},
        },
        keys=("model", "other"),
    ),
}
"""The columns of both tables."""


@dataclass(frozen=True)
class Pair:
    """A comparison of two models. layers, other_layers: names along the axes of the cells, (A, B) each."""

    model: str
    other: str
    layers: Sequence[str]
    other_layers: Sequence[str]
    cells: Cells

    def turned(self) -> Pair:
        """The same pair with the models swapped."""
        cells = {name: values.T for name, values in self.cells.items()}
        return Pair(self.other, self.model, self.other_layers, self.layers, cells)


def compare(pairs: Sequence[Pair], measure: str, minibatches: int) -> pd.DataFrame:
    """One row per pair of layers of each pair of models.

    calibrated: see `nulls.calibrated`. max_high: 95 % point, under the null, of the largest similarity of any two
    layers of the models.
    """
    sizes = [(len(pair.layers), len(pair.other_layers)) for pair in pairs]
    rows = np.array([a * b for a, b in sizes])
    cells = {name: np.concatenate([_cell(pair, name).ravel() for pair in pairs]) for name in CELLS}
    return pd.DataFrame(
        {
            "model": np.repeat(_text(pair.model for pair in pairs), rows),
            "model_layer": np.concatenate(
                [np.repeat(_text(p.layers), b) for p, (_, b) in zip(pairs, sizes, strict=True)]
            ),
            "other": np.repeat(_text(pair.other for pair in pairs), rows),
            "other_layer": np.concatenate(
                [np.tile(_text(p.other_layers), a) for p, (a, _) in zip(pairs, sizes, strict=True)]
            ),
            "measure": measure,
            **cells,
            "calibrated": calibrated(cells["value"], cells["null_high"]),
            "minibatches": minibatches,
        }
    )


def atlas(pairs: Sequence[Pair], measure: str) -> pd.DataFrame:
    """One row per pair of models.

    value: the largest over pairs of layers, found at these layers. mean: over pairs of layers. calibrated: of the
    value, against the largest over pairs of layers in each permutation.
    """
    rows = []
    for pair in pairs:
        value = pair.cells["value"]
        defined = ~np.isnan(value)
        row = dict.fromkeys(COLUMNS["atlas"].columns, np.nan) | {
            **{"model": pair.model, "other": pair.other, "measure": measure},
            **{"at_model_layer": "", "at_other_layer": ""},
        }
        if defined.any():
            a, b = map(int, np.unravel_index(np.nanargmax(value), value.shape))
            top = _cell(pair, "max_high")[a, b]
            row |= {
                **{"value": value[a, b], "mean": value[defined].mean()},
                **{"at_model_layer": pair.layers[a], "at_other_layer": pair.other_layers[b]},
                **{"p_max": _cell(pair, "p_max")[a, b], "max_high": top},
                "calibrated": float(calibrated(value[a, b], top)),
            }
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS["atlas"].columns))


def pairs_of(
    table: pd.DataFrame, layers: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], Pair]:
    """Return the pairs in a table made by `compare`, by the names of their models. layers: by model."""
    found = {}
    for names, rows in table.groupby(["model", "other"], sort=False):
        model, other = map(str, names)
        a, b = layers[model], layers[other]
        cells = {name: rows[name].to_numpy(float).reshape(len(a), len(b)) for name in CELLS}
        found[model, other] = Pair(model, other, a, b, cells)
    return found


def _cell(pair: Pair, name: str) -> np.ndarray:
    return pair.cells.get(name, np.full(pair.cells["value"].shape, np.nan))


def _text(words: object) -> np.ndarray:
    return np.array(list(words), dtype=object)  # type: ignore[call-overload]
