"""CKA of sets of attention heads, from local to global, with layers of another model (Raghu et al. 2021, Fig. 5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.errors import UserError
from vitsee.estimators.attention import Attention, attention_distance, require_no_windows
from vitsee.estimators.kernels import gram, hsic, u_centre
from vitsee.estimators.minibatch_cka import cka_and_error
from vitsee.io.tidy import Error, Table
from vitsee.lazy import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.sums import Sums


@register
@dataclass(kw_only=True)
class HeadSimilarity(Analysis):
    """Do local heads resemble early CNN layers more than global heads do?

    The heads of the first block are sorted by mean attention distance. A set of heads is represented by
    its concatenated outputs for the patches, A_h V_h before the projection. Its Gram matrix is the sum of
    its heads' Gram matrices, so one per head is enough.
    """

    models: ClassVar[tuple[int, ...]] = (2,)
    reads: ClassVar[tuple[str, str]] = ("attention", "outputs")
    equal_minibatches: ClassVar[bool] = True
    standard_errors: ClassVar[bool] = True
    version: ClassVar[int] = 2
    default_batch_size: ClassVar[int] = 128

    columns: ClassVar[dict[str, Table]] = {
        "head_similarity": Table(
            {
                "heads": str,
                "mean_distance_px": float,
                "other_layer": str,
                "cka": float,
                "se": Error,
            },
            grid=("heads", "other_layer"),
        )
    }

    name: str = "head_similarity"
    layers: Any = field(default_factory=lambda: ["blocks.0.attn"])
    other_layers: Any = "low"
    subset: int = 4
    """Number of heads per set, consecutive in order of distance; 1: single heads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subset < 1:
            raise UserError(f"analysis.subset must be at least 1, got {self.subset}")

    def check(self, layers: dict[str, list[Layer]]) -> None:
        require_no_windows(layers["model"], self.name)
        if len(layers["model"]) > 1:
            raise UserError(
                f"analysis.layers: head_similarity compares the heads of one block, but "
                f"{', '.join(layer.name for layer in layers['model'])} were chosen"
            )
        heads = layers["model"][0].shape[0]
        if self.subset > heads:
            raise UserError(
                f"analysis.subset={self.subset}: {layers['model'][0].name} has {heads} heads; "
                f"use analysis.subset={heads} or fewer"
            )

    def reduce(self, layer: Layer, output: Any) -> Tensor:
        """Attention: U-centred Gram matrix and mean distances of each head, (heads, N² + N) float64.

        Other layers: U-centred Gram matrix, (1, N²) float64.
        """
        if not isinstance(output, Attention):
            return u_centre(gram(output)).flatten()[None]
        values = output.output[:, :, layer.prefix :].unbind(1)
        grams = torch.stack([u_centre(gram(value)).flatten() for value in values])
        distance = attention_distance(output, layer).to(grams)
        return torch.cat([grams, distance.mT], 1)

    def observe(self, view: View) -> dict[str, Tensor]:
        """HSIC_1 of heads and layers, and the products needed for the standard error of any set.

        With H heads and L layers: hl (H, L), hh (H, H), ll (L,). Products are named after both factors,
        e.g. hl_hh (L, H, H, H): hl for one head times hh for two.
        """
        n = view.images
        packed = next(iter(view.model.values()))
        u, distance = packed[:, : n * n].unflatten(1, (n, n)), packed[:, n * n :]
        v = torch.cat(list(view.by_role["other"].values())).unflatten(1, (n, n))
        hl, hh, ll = hsic(u, v), hsic(u, u), hsic(v, v).diagonal()
        return {
            "images": ll.new_tensor(n),
            "distance": distance.sum(1),
            "fresh": ll.new_tensor(view.fresh),
            "hl": hl,
            "hh": hh,
            "ll": ll,
            "hl_hl": torch.einsum("hl,gl->lhg", hl, hl),
            "hl_hh": torch.einsum("hl,fg->lhfg", hl, hh),
            "hl_ll": hl * ll,
            "hh_hh": torch.einsum("hg,ef->hgef", hh, hh),
            "hh_ll": torch.einsum("hg,l->hgl", hh, ll),
            "ll_ll": ll * ll,
        }

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """One row per pair of head set and layer: heads, mean_distance_px, other_layer, cka, se, minibatches."""
        terms = {name: term.cpu().numpy() for name, term in sums.terms.items()}
        distance = terms["distance"] / terms["images"]
        order = np.argsort(distance, kind="stable")
        sets = [order[i : i + self.subset] for i in range(len(order) - self.subset + 1)]
        chosen = np.zeros((len(sets), len(order)))
        for row, heads in zip(chosen, sets, strict=True):
            row[heads] = 1
        cka, se = cka_and_error(of_sets(terms, chosen), int(sums.seen.sum()))
        names = [" ".join(str(head) for head in sorted(heads)) for heads in sets]
        which, layer = np.indices(cka.shape)
        table = pd.DataFrame(
            {
                "heads": np.array(names)[which.ravel()],
                "mean_distance_px": (chosen @ distance / self.subset)[which.ravel()],
                "other_layer": np.array(sums.axes["other"])[layer.ravel()],
                "cka": cka.ravel(),
                "se": se.ravel(),
                "minibatches": int(sums.seen.sum()),
            }
        )
        return {"head_similarity": table}

    def warnings(self, sums: Sums) -> list[str]:
        warnings = []
        for layer, own in zip(sums.axes["other"], sums.terms["ll"].tolist(), strict=True):
            if not own > 0:
                kind = "constant over the images" if own == 0 else "not finite"
                warnings.append(f"{layer} of the other is {kind}; its CKA is NaN")
        of_heads = sums.terms["hh"].diagonal().tolist()
        bad = [head for head, own in enumerate(of_heads) if not own > 0]
        if bad:
            warnings.append(f"heads {bad} of {sums.axes['model'][0]} are constant or not finite")
        return warnings

    def caption(self, figure: str, tables: dict[str, pd.DataFrame]) -> str:
        return (
            "Bands: one standard error over minibatches to either side; Spearman: the rank correlation of "
            "distance and CKA"
        )

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        """CKA against mean distance, one line per layer, with its rank correlation."""
        table = tables["head_similarity"]
        lines = {}
        for layer, line in table.groupby("other_layer", sort=False):
            rho = line["mean_distance_px"].rank().corr(line["cka"].rank())
            lines[f"{layer} (Spearman {rho:+.2f})"] = line
        drawn = plotting.line_plots.lines_with_errors(
            lines,
            x="mean_distance_px",
            y="cka",
            error="se",
            xlabel="Mean attention distance (pixels)",
            ylabel="CKA",
            title=f"Heads of {labels.model}, layers of {labels.other}\n{labels.data}",
        )
        return {"head_similarity": drawn}


def of_sets(terms: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Terms of `cka_and_error` for sets of heads, from the terms for single heads.

    chosen: (S, H), 1 where a set includes a head. HSIC of a sum of Gram matrices is a sum of HSICs.
    """
    pair = np.einsum("sh,sg->shg", chosen, chosen)
    return {
        "fresh": terms["fresh"],
        "ab": chosen @ terms["hl"],
        "aa": np.einsum("shg,hg->s", pair, terms["hh"]),
        "bb": terms["ll"],
        "ab_ab": np.einsum("shg,lhg->sl", pair, terms["hl_hl"]),
        "ab_aa": np.einsum("sh,sfg,lhfg->sl", chosen, pair, terms["hl_hh"]),
        "ab_bb": chosen @ terms["hl_ll"],
        "aa_bb": np.einsum("shg,hgl->sl", pair, terms["hh_ll"]),
        "aa_aa": np.einsum("shg,sef,hgef->s", pair, pair, terms["hh_hh"]),
        "bb_bb": terms["ll_ll"],
    }
