"""Norms of all tokens by layer, and tokens with outlying norms (Darcet et al. 2024, "registers")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.errors import UserError
from vitsee.estimators.kernels import float64_device
from vitsee.io.tidy import Kind, Table, Whole
from vitsee.lazy import torch
from vitsee.names import common_data, of_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.sums import Sums

KINDS = ("class", "register", "patch")
LOWEST, OCTAVES, PER_OCTAVE = -16, 40, 8
"""Histogram of norms: bins start at 2**LOWEST, each a factor of 2**(1/8) (9 %) wide."""

_TOKENS: dict[str, Kind] = {
    **{"layer": str, "depth": float, "kind": KINDS, "row": Whole(-1), "col": Whole()},
    **{"norm": float, "sd": float, "outlier_share": float},
}
_BINS: dict[str, Kind] = {
    **{"layer": str, "kind": KINDS, "bin": Whole()},
    **{"low": float, "high": float, "share": float},
}


@register
@dataclass(kw_only=True)
class TokenNorm(Analysis):
    """How large are the norms of each layer's tokens, and which tokens are outliers?

    The Euclidean norm of each token over its features; in a CNN, of each location over its channels. A
    token is an outlier if its norm is above `multiple` times the median norm of the patch tokens of the
    same image in the same layer.
    """

    models: ClassVar[tuple[int, ...]] = (1,)
    default_images: ClassVar[int] = 1024
    default_batch_size: ClassVar[int] = 64

    columns: ClassVar[dict[str, Table]] = {
        "token_norm": Table(_TOKENS),
        "token_norm_histogram": Table(_BINS),
    }

    name: str = "token_norm"
    multiple: float = 3.0
    """A token is an outlier if its norm is above this many times the median of the image's patch tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.multiple < float("inf"):
            raise UserError(
                f"analysis.multiple must be above 1 (times the median norm), e.g. 3; got {self.multiple}"
            )

    def check(self, layers: dict[str, list[Layer]]) -> None:
        for layer in layers["model"]:
            if layer.grid is None:
                raise UserError(
                    f"analysis=token_norm: {layer.name} has no rows and columns (its output of "
                    f"{' x '.join(map(str, layer.shape))} is neither tokens on a grid nor a feature map); "
                    f"choose other layers with analysis.layers, such as blocks"
                )

    def reduce(self, layer: Layer, output: Tensor) -> Tensor:
        """Norm of each token, (N, tokens) float32."""
        return torch.linalg.vector_norm(layer.sequence(output), dim=-1, dtype=torch.float32)

    def observe(self, view: View) -> dict[str, Tensor]:
        """Per layer: sums over images of each token's norm, of its square, and of whether it is an outlier.

        histogram: (kinds, bins), number of tokens per bin.
        """
        terms: dict[str, Tensor] = {}
        for layer in self.setting.layers["model"]:
            norms = view.model[layer.name]
            norms = norms.to(float64_device(norms), torch.float64)
            middle = norms[:, layer.prefix or 0 :].median(1, keepdim=True).values
            terms |= {
                f"{layer.name} norm": norms.sum(0),
                f"{layer.name} squares": norms.square().sum(0),
                f"{layer.name} outliers": (norms > self.multiple * middle).sum(0),
                f"{layer.name} histogram": histogram(norms, _kinds(layer, norms.device)),
            }
        return terms | {"images": norms.new_tensor(view.images)}

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """token_norm: one row per layer and token, with mean and standard deviation over images.

        token_norm_histogram: one row per layer, kind and bin, from the lowest to the highest non-empty bin;
        share: fraction of the tokens of this kind.
        """
        terms = {name: term.cpu().numpy() for name, term in sums.terms.items()}
        images = float(terms["images"])
        norms, bins = [], []
        for layer in self.setting.layers["model"]:
            norm, squares, outliers, counts = (
                terms[f"{layer.name} {name}"]
                for name in ("norm", "squares", "outliers", "histogram")
            )
            mean = norm / images
            with np.errstate(invalid="ignore", divide="ignore"):
                variance = (squares - images * mean**2) / (images - 1 if images > 1 else np.nan)
            kind, row, col = zip(*layer.tokens, strict=True)
            norms.append(
                pd.DataFrame(
                    {
                        "layer": layer.name,
                        "depth": np.nan if layer.depth is None else layer.depth,
                        "kind": kind,
                        "row": row,
                        "col": col,
                        "norm": mean,
                        "sd": np.sqrt(np.clip(variance, 0, None)),
                        "outlier_share": np.where(np.isfinite(mean), outliers / images, np.nan),
                    }
                )
            )
            bins += [_bins(layer.name, *pair) for pair in zip(KINDS, counts, strict=True)]
        return {
            "token_norm": pd.concat(norms, ignore_index=True),
            "token_norm_histogram": pd.concat(bins, ignore_index=True),
        }

    def warnings(self, sums: Sums) -> list[str]:
        """Which layers have undefined norms."""
        warnings = []
        for layer in self.setting.layers["model"]:
            broken = (~sums.terms[f"{layer.name} norm"].isfinite()).sum()
            if broken:
                warnings.append(
                    f"{layer.name}: {int(broken)} of its {len(layer.tokens)} tokens are NaN or Inf in some "
                    f"image; their norms are NaN or Inf"
                )
        return warnings

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        """Norm and fraction of outliers by depth and over the grid, and histograms of the last layers."""
        table, title = tables["token_norm"], f"{labels.model}, {labels.data}"
        patches = table[table["kind"] == "patch"]
        lines = {kind: _by_depth(rows) for kind, rows in _by_kind(table)}
        maps: dict[str, Any] = {"panel": "layer", "row": "row", "column": "col", "title": title}
        norms = [
            plotting.line_plots.Line(
                line[value].to_numpy(), f"{_WORDS[kind]}{which}", kind, dashed=bool(which)
            )
            for kind, line in lines.items()
            for value, which in (("norm", ""), ("highest", ", maximum"))
            if not which or kind == "patch"
        ]
        return {
            "token_norm": plotting.line_plots.depth_lines(
                norms, xlabel="Layer", ylabel="Mean token norm", title=title
            ),
            "token_norm_outliers": plotting.line_plots.depth_lines(
                [
                    plotting.line_plots.Line(line["outlier_share"].to_numpy(), _WORDS[kind], kind)
                    for kind, line in lines.items()
                ],
                xlabel="Layer",
                ylabel=f"Fraction of outliers (norm > {self.multiple:g} x median)",
                title=title,
            ),
            "token_norm_map": plotting.map_plots.grids(
                patches, value="norm", colour_label="Mean norm of patch tokens", **maps
            ),
            "token_norm_outlier_map": plotting.map_plots.grids(
                patches,
                value="outlier_share",
                limits=(0, 1),
                colour_label="Fraction of images in which the patch token is an outlier",
                **maps,
            ),
            "token_norm_histogram": plotting.line_plots.histograms(
                tables["token_norm_histogram"],
                panel="layer",
                line="kind",
                xlabel="Token norm",
                ylabel="Fraction of tokens",
                title=title,
            ),
        }

    def joined(
        self, results: Sequence[tuple[dict[str, pd.DataFrame], Labels]]
    ) -> dict[str, Figure]:
        """Fraction of outliers among the patch tokens of several models, by depth."""
        of_each = [labels for _, labels in results]
        lines, x = [], []
        for (tables, _), name in zip(results, of_lines(of_each), strict=True):
            table = tables["token_norm"]
            line = _by_depth(table[table["kind"] == "patch"])
            lines.append(plotting.line_plots.Line(line["outlier_share"].to_numpy(), name, name))
            x.append(line["depth"].to_numpy())
        drawn = plotting.line_plots.depth_lines(
            lines,
            xlabel="Depth (fraction of blocks)",
            ylabel=f"Outlier patch tokens (norm > {self.multiple:g} x median)",
            title=common_data(of_each),
            x=x,
        )
        return {"token_norm_outliers": drawn}


_WORDS = {"class": "class token", "register": "register tokens", "patch": "patch tokens"}


def histogram(norms: Tensor, kinds: Tensor) -> Tensor:
    """Number of tokens per kind and bin, (N, tokens) and (tokens,) indices of kinds -> (kinds, bins) float64.

    The first and last bins also count norms outside the range; NaN and Inf are not counted.
    """
    bins = OCTAVES * PER_OCTAVE + 2
    place = ((norms.log2() - LOWEST) * PER_OCTAVE).floor() + 1
    place = place.nan_to_num(0).clamp(0, bins - 1).long() + bins * kinds
    counts = torch.bincount(place[norms.isfinite()], minlength=bins * len(KINDS))
    return counts.double().view(len(KINDS), bins)


def _kinds(layer: Layer, device: torch.device) -> Tensor:
    """Index of the kind of each token."""
    return torch.tensor([KINDS.index(kind) for kind, _, _ in layer.tokens], device=device)


def _bins(layer: str, kind: str, counts: np.ndarray) -> pd.DataFrame:
    """The bins of one histogram, from the first to the last that is not empty; no rows if all are."""
    there = np.flatnonzero(counts)
    shown = np.arange(there[0], there[-1] + 1) if len(there) else there
    edges = 2.0 ** (LOWEST + np.arange(-1, len(counts)) / PER_OCTAVE)
    edges[0], edges[-1] = 0, np.inf
    return pd.DataFrame(
        {
            "layer": layer,
            "kind": kind,
            "bin": shown,
            "low": edges[shown],
            "high": edges[shown + 1],
            "share": counts[shown] / max(1, counts.sum()),
        }
    )


def _by_kind(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(kind, table[table["kind"] == kind]) for kind in KINDS if (table["kind"] == kind).any()]


def _by_depth(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the tokens of each layer; highest: the largest mean norm of any of them."""
    layers = table.groupby("layer", sort=False)
    means = layers[["depth", "norm", "outlier_share"]].mean()
    return means.assign(highest=layers["norm"].max())
