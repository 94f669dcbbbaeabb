"""Principal components of the patch embedding filters (Dosovitskiy et al. 2021, Fig. 7 left)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, register
from vitsee.errors import UserError
from vitsee.io.tidy import Table, Whole, indices
from vitsee.models.embedding import filters, principal_components

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from vitsee.sums import Sums

_PLACES = ("component", "channel", "row", "col")


@register
@dataclass(kw_only=True)
class EmbeddingFilters(Analysis):
    """Which patterns does the patch embedding detect?

    Unit-length principal components of the D filters of the patch embedding (each channels x rows x
    columns) after their mean is subtracted. The sign of a component is arbitrary, so its weight of largest
    magnitude is made positive.
    """

    models: ClassVar[tuple[int, ...]] = (1,)
    weights_only: ClassVar[bool] = True

    columns: ClassVar[dict[str, Table]] = {
        "embedding_filters": Table(
            dict.fromkeys(_PLACES, Whole()) | {"value": float}, grid=_PLACES
        ),
        "embedding_variance": Table({"component": Whole(), "share": float}),
    }

    name: str = "embedding_filters"
    components: int = 28
    """Number of components, in order of explained variance; the paper shows 28."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.components < 1:
            raise UserError(f"analysis.components must be at least 1, got {self.components}")

    def of_weights(self, nets: dict[str, nn.Module]) -> dict[str, Tensor]:
        """components: (components, channels, rows, columns); variance: (components,), as fractions of the total."""
        weights = filters(nets["model"])
        most = min(len(weights) - 1, weights[0].numel())
        if self.components > most:
            raise UserError(
                f"analysis.components={self.components}: {len(weights)} filters of "
                f"{weights[0].numel()} weights have at most {most} principal components; "
                f"use analysis.components={most}"
            )
        components, share = principal_components(weights)
        return {"components": components[: self.components], "variance": share[: self.components]}

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """embedding_filters: one row per weight of each component. embedding_variance: one row per component."""
        values = sums.terms["components"].cpu().numpy()
        where = indices(values.shape, *_PLACES)
        share = sums.terms["variance"].cpu().numpy()
        return {
            "embedding_filters": pd.DataFrame(where | {"value": values.ravel()}),
            "embedding_variance": pd.DataFrame({"component": range(len(share)), "share": share}),
        }

    def warnings(self, sums: Sums) -> list[str]:
        """Which components are undefined, and why."""
        undefined = sums.terms["components"].isnan().flatten(1).any(1).nonzero().flatten().tolist()
        if not undefined:
            return []
        return [
            f"{len(undefined)} components, from component {undefined[0]} on, have no variance above "
            f"rounding, because the filters span fewer dimensions; they are NaN"
        ]

    def caption(self, figure: str, tables: dict[str, pd.DataFrame]) -> str:
        share = tables["embedding_variance"]["share"].sum()
        return f"The components shown explain {share:.0%} of the variance of the embedding filters"

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        """The components as images, each scaled from its smallest weight to its largest."""
        table = tables["embedding_filters"]
        shape = [int(table[name].max()) + 1 for name in _PLACES]
        if shape[1] not in (1, 3):
            raise UserError(
                f"filters with {shape[1]} channels cannot be drawn, only those with 1 (grey) or 3 (RGB); "
                f"embedding_filters.csv has their weights"
            )
        values = table["value"].to_numpy().reshape(shape).transpose(0, 2, 3, 1)
        low, high = (pick(values, axis=(1, 2, 3), keepdims=True) for pick in (np.min, np.max))
        share = tables["embedding_variance"]["share"].sum()
        figure = plotting.map_plots.tiles(
            (values - low) / (high - low),
            columns=7,
            title=f"{labels.model}: first {shape[0]} principal components of the embedding filters, "
            f"{share:.0%} of variance",
        )
        return {"embedding_filters": figure}
