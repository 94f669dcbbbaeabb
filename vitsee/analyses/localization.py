"""CKA between each token and the pixels of each input patch (Raghu et al. 2021, Fig. 9)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.errors import UserError
from vitsee.estimators.minibatch_cka import cka_and_error, cka_terms
from vitsee.estimators.places import (
    cut_into_patches,
    pair_grams,
    pair_hsic,
    representations,
    self_hsic,
)
from vitsee.io.tidy import Table, Whole, indices
from vitsee.sums import GROUPS, Sums

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


Grid = tuple[int, int]

MOST_PLACES = 64 * 64
"""Largest number of grid locations; its table has 17 million rows."""

PAPER_TOKENS: dict[Grid, list[Grid]] = {
    (7, 7): [(0, 0), (2, 1), (4, 2), (4, 4)],
    (14, 14): [(0, 0), (2, 3), (2, 7), (4, 5)],
    (16, 16): [(0, 0), (2, 5), (5, 10), (5, 11)],
}
"""Tokens shown in the paper (Figs. 9, 10, D.1-D.3), by grid."""
_TOKEN, _PATCH = ("token_row", "token_col"), ("patch_row", "patch_col")


DARK = 10
"""The colour scale covers at least this many standard errors, so that noise (within 3) stays dark."""


class Scale(Enum):
    """Which maps share a colour scale."""

    common = "common"
    map = "map"


@register
@dataclass(kw_only=True)
class Localization(Analysis):
    """How similar is each token to the input patch at its own location?

    CKA between the features of one token (or one location of a CNN's feature map) and the preprocessed
    pixels of one patch, for all tokens and all patches of the same grid. It uses linear kernels, HSIC_1
    and the ratio of averages over minibatches (Nguyen et al. 2021, eq. 2 and 3), as in analysis=cka.
    Values are not clipped: for unrelated locations they scatter around 0.
    """

    models: ClassVar[tuple[int, ...]] = (1,)
    equal_minibatches: ClassVar[bool] = True
    standard_errors: ClassVar[bool] = True
    unread: ClassVar[dict[str, str]] = dict.fromkeys(
        ("scale", "mask"), "it changes only the figure"
    )
    version: ClassVar[int] = 2

    columns: ClassVar[dict[str, Table]] = {
        "localization": Table(
            {"layer": str} | dict.fromkeys((*_TOKEN, *_PATCH), Whole()) | {"cka": float},
            grid=(*_TOKEN, *_PATCH),
        ),
        "localization_score": Table(
            {"layer": str}
            | dict.fromkeys(_TOKEN, Whole())
            | dict.fromkeys(("own_cka", "mean_cka", "own_rank"), float),
            grid=_TOKEN,
        ),
    }

    name: str = "localization"
    layers: Any = "last"
    tokens: Any = None
    """Tokens to draw, [[row, column], …] counted from 0; by default those in the paper."""
    scale: Scale = Scale.common
    """Colour scale of the figures. common: one for all maps; map: one per map."""
    mask: float | None = None
    """Patches whose CKA is within this many standard errors of 0 are drawn in a single colour; null: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask is not None and not self.mask > 0:
            raise UserError(
                f"analysis.mask must be above 0 (standard errors), such as 2; got {self.mask}"
            )
        if self.tokens is not None:
            self.tokens = _places(self.tokens)

    def check(self, layers: dict[str, list[Layer]]) -> None:
        for layer in layers["model"]:
            rows, columns = _grid(layer)
            for row, column in self.tokens or []:
                if row >= rows or column >= columns:
                    raise UserError(
                        f"analysis.tokens: {layer.name} has no token [{row}, {column}]; its {rows} x {columns} grid "
                        f"goes from [0, 0] to [{rows - 1}, {columns - 1}]"
                    )

    def check_memory(self, memory: float) -> None:
        """Raise UserError if the sums of all groups, plus two working copies, do not fit in memory."""
        grids = [_grid(layer) for layer in self.setting.layers["model"]]
        need = (GROUPS + 2) * sum(map(_bytes, grids))
        if need > memory:
            raise UserError(
                f"analysis=localization: the sums of {len(grids)} layers, the largest with "
                f"{max(r * c for r, c in grids):,} locations, need {need / 2**30:.1f} GB, but "
                f"{memory / 2**30:.1f} GB are available (run.memory_gb); use fewer or deeper layers "
                f"(analysis.layers)"
            )

    def reduce(self, layer: Layer, output: Tensor) -> Tensor:
        """U-centred Gram matrix of each token, (rows, columns, N (N - 1) / 2) float32."""
        return pair_grams(representations(layer, output)).unflatten(0, _grid(layer))

    def observe(self, view: View) -> dict[str, Tensor]:
        """HSIC_1 of each token with each patch, and the products needed for its standard error.

        For each layer: (rows, columns) for tokens or patches, (rows, columns, rows, columns) for pairs.
        """
        pixels: dict[tuple[Grid, tuple[float, float] | None], Tensor] = {}
        terms: dict[str, Tensor] = {}
        for layer in self.setting.layers["model"]:
            u, grid = view.model[layer.name], _grid(layer)
            cut = grid, None if layer.is_map else layer.pitch
            if cut not in pixels:
                pixels[cut] = pair_grams(cut_into_patches(view.pixels["model"], *cut))
            a, b = u.flatten(0, 1), pixels[cut]
            aa, bb = self_hsic(a, view.images), self_hsic(b, view.images)
            of_layer = cka_terms(pair_hsic(a, b, view.images), aa, bb, view.fresh)
            of_layer |= {"broken_aa": ~aa.isfinite(), "broken_bb": ~bb.isfinite()}
            terms |= {
                f"{layer.name} {name}": x.reshape(grid * x.ndim) for name, x in of_layer.items()
            }
        return terms

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """localization: one row per token and patch. localization_score: one row per token.

        Means skip patches with undefined CKA: mean_cka is over all patches, including the token's own,
        border_cka over patches at the border of the input, inner_cka over the others. own_rank is 1 if no
        patch is more similar than the token's own.
        """
        pairs, scores = [], []
        for layer, grid, cka, se in _estimates(sums):
            pairs.append(_pairs(layer, grid, cka, se, int(sums.seen.sum())))
            scores.append(_scores(layer, grid, cka))
        return {
            "localization": pd.concat(pairs, ignore_index=True),
            "localization_score": pd.concat(scores, ignore_index=True),
        }

    def warnings(self, sums: Sums) -> list[str]:
        """Which tokens and patches have undefined CKA, and why."""
        warnings = []
        for layer, terms in _of_each_layer(sums):
            for where, places, own in ((layer, "tokens", "aa"), ("the input", "patches", "bb")):
                constant, broken = terms[own] == 0, terms[f"broken_{own}"] > 0
                if broken.any():
                    warnings.append(
                        f"{where}: {_count(broken, places)} have NaN or Inf; their CKA is NaN"
                    )
                if constant.any():
                    warnings.append(
                        f"{where}: {_count(constant, places)} are constant over the images; "
                        f"their CKA is 0/0, so NaN"
                    )
        return list(dict.fromkeys(warnings))  # layers with the same grid share their patches

    def caption(self, figure: str, tables: dict[str, pd.DataFrame]) -> str:
        own = "" if self.scale is Scale.common else ", one scale per map"
        return f"The square marks the token; colour: CKA between token and patch{own}"

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        """CKA maps of the chosen tokens, one row per layer; own minus mean CKA, one map per layer."""
        heatmaps, excess = [], []
        for layer, table in _by_layer(tables["localization"]):
            cka, se = _array(table, "cka"), _array(table, "se")
            masked = None if self.mask is None else np.abs(cka) <= self.mask * se  # False where NaN
            drawn = [
                plotting.map_plots.Map(
                    cka[place], f"Token {place}", place, None if masked is None else masked[place]
                )
                for place in self._shown(cka.shape[:2])
            ]
            heatmaps.append(plotting.map_plots.MapRow(drawn, layer))
        for layer, table in _by_layer(tables["localization_score"]):
            rank = table["own_rank"].median()
            excess.append(plotting.map_plots.Map(_excess(table), f"{layer}, rank {rank:g}"))
        title = f"{labels.model}, {labels.data}"
        error = _typical_error(tables["localization"])
        known = f"median standard error {error:.2g}" if error else "standard error unknown"
        if self.mask is not None:
            within = f"{plotting.map_plots.MASKED[1]}: within {self.mask:g} standard errors of 0"
            known += f"; {within}" if error else ", so none are masked"
        common = self.scale is Scale.common
        own = "" if common else ", one scale per map"
        return {
            "localization": plotting.map_plots.maps(
                heatmaps,
                title=title,
                colour_label=f"CKA between token and patch{own}\n({known})",
                xlabel="Patch column",
                ylabel="Patch row",
                common=common,
                least=DARK * error,
            ),
            "localization_score": plotting.map_plots.maps(
                [plotting.map_plots.MapRow(excess[i : i + 4]) for i in range(0, len(excess), 4)],
                title=title,
                colour_label=f"Own minus mean CKA{own}\n(rank: median rank of own patch; no standard error)",
                xlabel="Token column",
                ylabel="Token row",
                common=common,
                least=DARK * error,
            ),
        }

    def _shown(self, grid: Grid) -> list[Grid]:
        """The tokens to draw from a layer with this grid."""
        if self.tokens is not None:
            return [(row, column) for row, column in self.tokens]
        spread = [(r * grid[0] // 7, c * grid[1] // 7) for r, c in PAPER_TOKENS[7, 7]]
        return PAPER_TOKENS.get(grid) or list(dict.fromkeys(spread))


def _places(value: Any) -> list[list[int]]:
    """The option `tokens`. Raises UserError unless it is a list of [row, column]."""
    good = (
        isinstance(value, list)
        and value
        and all(isinstance(place, list) and len(place) == 2 for place in value)
        and all(type(i) is int and i >= 0 for place in value for i in place)
    )
    if not good:
        raise UserError(
            f"analysis.tokens must be a list of [row, column] counted from 0, "
            f"e.g. 'analysis.tokens=[[0,0],[2,5]]'; got {value!r}"
        )
    return value


def _grid(layer: Layer) -> Grid:
    """Rows and columns of the layer's grid. Raises UserError if it has none, or too many locations."""
    shape = " x ".join(map(str, layer.shape))
    if layer.grid is None:
        raise UserError(
            f"analysis=localization: {layer.name} has no rows and columns (its output of {shape} is neither "
            f"tokens on a grid nor a feature map); choose other layers with "
            f"analysis.layers, such as last, blocks or names listed by 'vitsee list layers'"
        )
    if layer.grid[0] * layer.grid[1] > MOST_PLACES:
        raise UserError(
            f"analysis=localization: {layer.name} has {layer.grid[0]} x {layer.grid[1]} locations, so "
            f"{(layer.grid[0] * layer.grid[1]) ** 2:,} pairs of token and patch; at most {MOST_PLACES:,} "
            f"locations are compared: choose deeper layers with analysis.layers"
        )
    return layer.grid


def _bytes(grid: Grid) -> int:
    """Bytes of a layer's sums: five numbers per pair of locations, six per location, and one more."""
    places = grid[0] * grid[1]
    return 8 * (5 * places**2 + 6 * places + 1)


def _of_each_layer(sums: Sums) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The sums of each layer as arrays, by name of the term."""
    for layer in sums.axes["model"]:
        own = {name: x for name, x in sums.terms.items() if name.startswith(f"{layer} ")}
        yield layer, {name.removeprefix(f"{layer} "): x.cpu().numpy() for name, x in own.items()}


def _estimates(sums: Sums) -> Iterator[tuple[str, Grid, np.ndarray, np.ndarray]]:
    """Each layer and its grid, with CKA and standard error as (tokens, patches)."""
    for layer, terms in _of_each_layer(sums):
        rows, columns = terms["aa"].shape
        flat = {name: x.reshape([rows * columns] * (x.ndim // 2)) for name, x in terms.items()}
        yield layer, (rows, columns), *cka_and_error(flat, int(sums.seen.sum()))


def _pairs(
    layer: str, grid: Grid, cka: np.ndarray, se: np.ndarray, minibatches: int
) -> pd.DataFrame:
    """One row per token and patch, from (tokens, patches)."""
    where = indices(grid * 2, *_TOKEN, *_PATCH)
    values = {"cka": cka.ravel(), "se": se.ravel(), "minibatches": minibatches}
    return pd.DataFrame({"layer": layer, **where, **values})


def _scores(layer: str, grid: Grid, cka: np.ndarray) -> pd.DataFrame:
    """One row per token, from (tokens, patches)."""
    row, column = indices(grid, *_TOKEN).values()
    border = (row % (grid[0] - 1 or 1) == 0) | (column % (grid[1] - 1 or 1) == 0)
    own = cka.diagonal()
    return pd.DataFrame(
        {
            "layer": layer,
            "token_row": row,
            "token_col": column,
            "own_cka": own,
            "mean_cka": _mean(cka),
            "own_rank": np.where(np.isnan(own), np.nan, 1.0 + (cka > own[:, None]).sum(1)),
            "border_cka": _mean(cka[:, border]),
            "inner_cka": _mean(cka[:, ~border]),
        }
    )


def _mean(cka: np.ndarray) -> np.ndarray:
    """Mean over patches with defined CKA, (tokens, patches) -> (tokens,); NaN if there are none."""
    with np.errstate(invalid="ignore"):
        return np.nansum(cka, 1) / (~np.isnan(cka)).sum(1)


def _count(where: np.ndarray, places: str) -> str:
    return f"{where.sum()} of {where.size} {places} (first: {np.argwhere(where)[0].tolist()})"


def _by_layer(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    return ((str(name), rows) for name, rows in table.groupby("layer", sort=False))


def _array(pairs: pd.DataFrame, column: str) -> np.ndarray:
    """A column of one layer's table, (rows, columns, rows, columns); NaN if the table lacks it."""
    grid = [int(pairs[name].max()) + 1 for name in ("token_row", "token_col")]
    values = pairs.get(column, pd.Series(np.nan, index=pairs.index))
    return values.to_numpy(float).reshape(grid * 2)


def _typical_error(pairs: pd.DataFrame) -> float:
    """Median standard error of CKA, which differs little between places; 0 if it is unknown."""
    error = pairs["se"].median() if "se" in pairs else np.nan
    return float(error) if np.isfinite(error) else 0.0


def _excess(score: pd.DataFrame) -> np.ndarray:
    """Own minus mean CKA of each token, (rows, columns)."""
    grid = [int(score[name].max()) + 1 for name in ("token_row", "token_col")]
    return (score["own_cka"] - score["mean_cka"]).to_numpy().reshape(grid)
