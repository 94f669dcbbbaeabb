"""CKA of each block of one model with the block at the same depth of another (Raghu et al. 2021, Figs. 12 and G.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.estimators.kernels import gram, u_centre
from vitsee.estimators.minibatch_cka import cka_and_error, cka_terms
from vitsee.io.tidy import Error, Table, Whole
from vitsee.lazy import torch
from vitsee.names import common_data, of_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.sums import Sums


@register
@dataclass(kw_only=True)
class BlockSimilarity(Analysis):
    """How similar is each block to its counterpart in a model trained on other data, or before fine-tuning?

    Blocks are paired by relative depth, so models of equal depth are compared block by block.
    """

    models: ClassVar[tuple[int, ...]] = (2,)
    equal_minibatches: ClassVar[bool] = True
    standard_errors: ClassVar[bool] = True

    columns: ClassVar[dict[str, Table]] = {
        "block_similarity": Table(
            {
                "block": Whole(),
                "depth": float,
                "model": str,
                "other": str,
                "cka": float,
                "se": Error,
            },
            keys=("block",),
        )
    }

    name: str = "block_similarity"
    layers: Any = "blocks"

    def reduce(self, layer: Layer, output: Tensor) -> Tensor:
        """U-centred Gram matrix of one block: (N, ...) -> (N, N) float64."""
        return u_centre(gram(output))

    def observe(self, view: View) -> dict[str, Tensor]:
        """HSIC_1 of each block with its counterpart, and the products needed for its standard error."""
        u, v = (torch.stack(list(part.values())) for part in view.by_role.values())
        v = v[torch.tensor(paired(len(u), len(v)), device=v.device)]
        scale = view.images * (view.images - 3)
        ab, aa, bb = ((x * y).sum((1, 2)) / scale for x, y in ((u, v), (u, u), (v, v)))
        return cka_terms(ab, aa, bb, view.fresh)

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """One row per block: block, depth, model, other, cka, se, other_block, minibatches.

        depth: fraction of the model's blocks, 1 for the last.
        """
        terms = {name: term.cpu().numpy() for name, term in sums.terms.items()}
        cka, se = cka_and_error(terms, int(sums.seen.sum()))
        blocks = np.arange(len(cka))
        table = pd.DataFrame(
            {
                "block": blocks,
                "depth": (blocks + 1) / len(blocks),
                "model": self.setting.names["model"],
                "other": self.setting.names["other"],
                "cka": cka,
                "se": se,
                "other_block": paired(len(cka), len(sums.axes["other"])),
                "minibatches": int(sums.seen.sum()),
            }
        )
        return {"block_similarity": table}

    def warnings(self, sums: Sums) -> list[str]:
        warnings = []
        for role, key in (("model", "aa"), ("other", "bb")):
            for i, own in enumerate(sums.terms[key].tolist()):
                if not own > 0:
                    kind = "constant over the images" if own == 0 else "not finite"
                    warnings.append(f"block {i} of the {role} is {kind}; its CKA is NaN")
        return warnings

    def caption(self, figure: str, tables: dict[str, pd.DataFrame]) -> str:
        return "Bands: one standard error over minibatches to either side"

    def joined(
        self, results: Sequence[tuple[dict[str, pd.DataFrame], Labels]]
    ) -> dict[str, Figure]:
        """CKA by depth, one line per pair of models."""
        of_each = [labels for _, labels in results]
        tables = [tables["block_similarity"] for tables, _ in results]
        lines = dict(zip(of_lines(of_each), tables, strict=True))
        other, *more = {labels.other: None for labels in of_each}
        to = "" if more else f" to {other}"
        drawn = plotting.line_plots.lines_with_errors(
            lines,
            x="block",
            y="cka",
            error="se",
            xlabel="Block",
            ylabel="CKA",
            title=f"Similarity of blocks{to}\n{common_data(of_each)}",
        )
        return {"block_similarity": drawn}


def paired(blocks: int, others: int) -> list[int]:
    """For each block, the block of the other model nearest in relative depth."""
    depths = (np.arange(others) + 1) / others
    return [int(np.abs(depths - (i + 1) / blocks).argmin()) for i in range(blocks)]
