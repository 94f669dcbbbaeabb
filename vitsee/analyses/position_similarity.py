"""Cosine similarity of position embeddings (Dosovitskiy et al. 2021, Fig. 7 centre, Fig. 10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, register
from vitsee.io.tidy import Table, Whole, indices
from vitsee.models.embedding import cosines, position_embeddings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from vitsee.sums import Sums

_PLACES = ("row", "col", "other_row", "other_col")


@register
@dataclass(kw_only=True)
class PositionSimilarity(Analysis):
    """How similar are the position embeddings of two patches?

    Cosine similarity of the position embeddings of each pair of patches. Class, distillation and
    register tokens are left out.
    """

    models: ClassVar[tuple[int, ...]] = (1,)
    weights_only: ClassVar[bool] = True

    columns: ClassVar[dict[str, Table]] = {
        "position_similarity": Table(
            dict.fromkeys(_PLACES, Whole()) | {"cosine": float}, grid=_PLACES
        )
    }

    name: str = "position_similarity"

    def of_weights(self, nets: dict[str, nn.Module]) -> dict[str, Tensor]:
        """cosine: (rows, columns, rows, columns)."""
        return {"cosine": cosines(position_embeddings(nets["model"]))}

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """One row per pair of patches: row, col, other_row, other_col, cosine."""
        cosine = sums.terms["cosine"].cpu().numpy()
        where = indices(cosine.shape, *_PLACES)
        return {"position_similarity": pd.DataFrame(where | {"cosine": cosine.ravel()})}

    def warnings(self, sums: Sums) -> list[str]:
        """Position embeddings that are zero and so have no direction."""
        cosine = sums.terms["cosine"]
        undefined = cosine.isnan().all(3).all(2).nonzero().tolist()
        if not undefined:
            return []
        return [
            f"the position embeddings of {len(undefined)} of {cosine[0, 0].numel()} patches, the first "
            f"{undefined[0]}, are zero; their cosine is NaN"
        ]

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        table = tables["position_similarity"]
        shape = [int(table[name].max()) + 1 for name in _PLACES]
        figure = plotting.map_plots.grid_of_grids(
            table["cosine"].to_numpy().reshape(shape),
            limits=(-1, 1),
            xlabel="Patch column",
            ylabel="Patch row",
            title=f"{labels.model}: similarity of position embeddings",
            colour_label="Cosine similarity",
        )
        return {"position_similarity": figure}
