"""Centred kernel alignment between layers (Kornblith et al. 2019; from minibatches: Nguyen et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.estimators.kernels import gram, hsic, u_centre_
from vitsee.estimators.minibatch_cka import cka_and_error, cka_terms
from vitsee.estimators.outliers import REMOVED, Without, beside
from vitsee.estimators.tokens import Tokens
from vitsee.io.tidy import MODELS, Error, Table
from vitsee.lazy import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.proof import Impossibility
    from vitsee.sums import Sums


class Products(Enum):
    """How features are rounded before they are multiplied; the products are summed in float32 and float64."""

    auto = "auto"
    exact = "exact"
    tf32 = "tf32"
    bf16 = "bf16"


AUTO = {"fp32": "exact", "tf32": "tf32", "bf16": "native"}
"""The rounding of `products=auto` on CUDA, by precision of the forward pass, which rounds far more."""


@register
@dataclass(kw_only=True)
class CKA(Analysis):
    """How similar is each layer to every other layer, within one model or between two?

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with linear kernels, where each HSIC is the mean
    over minibatches of the unbiased estimator HSIC_1 (Nguyen et al. 2021, eq. 2 and 3). Values are
    not clipped: for unrelated layers they scatter around 0.
    """

    models: ClassVar[tuple[int, ...]] = (1, 2)
    equal_minibatches: ClassVar[bool] = True
    standard_errors: ClassVar[bool] = True

    columns: ClassVar[dict[str, Table]] = {
        "cka": Table(
            {"model_layer": str, "other_layer": str, "cka": float, "se": Error},
            grid=("model_layer", "other_layer"),
        ),
        "cka_outliers": Table(
            {"model": MODELS, "layer": str, "channels": float, "tokens": float, "variance": float},
            optional=True,
        ),
    }
    later: ClassVar[dict[str, Any]] = {"without": "nothing"}

    name: str = "cka"
    layers: Any = "paper"
    tokens: Tokens = Tokens.all
    """all: the whole output; cls: the class token; patches: all tokens except class and register tokens."""
    products: Products = Products.auto
    """Rounding of the features before they are multiplied. auto: far below the rounding of the forward pass
    (`precision`). exact: entries are within 1e-6 at any precision. tf32 (CUDA) and bf16 are faster on a
    GPU but less accurate: docs/benchmarks.md lists the errors."""
    revised: ClassVar[dict[str, tuple[str, int]]] = {"without": ("outliers", 2)}
    without: Without = Without.nothing
    """outliers: leave out channels and tokens that stand out (`estimators/outliers.py`) and would otherwise dominate
    some layers."""

    def check(self, layers: dict[str, list[Layer]]) -> None:
        self.without.require(layers)
        self.tokens.require(layers)

    def reduce(self, layer: Layer, output: Tensor) -> Tensor:
        """Gram matrix of one layer: (N, ...) -> (N, N) float64.

        Without outliers, one more column encodes what was removed.
        """
        features, removed = self.without.of(layer, output, self.tokens)
        return beside(gram(features, self.rounding(output.device.type)), removed)

    def rounding(self, device: str) -> str:
        """How the features are rounded on this type of device: see `kernels.gram`."""
        if self.products is not Products.auto:
            return self.products.value
        return AUTO[self.setting.precision] if device == "cuda" else "exact"

    def observe(self, view: View) -> dict[str, Tensor]:
        """HSIC_1 of every pair of layers, and the products needed for its standard error.

        a: layers of the model; b: layers of the other, or the same layers without another model.
        """
        n = view.images
        of_model = torch.stack(list(view.model.values()))
        of_other = None if view.other is None else torch.stack(list(view.other.values()))
        u = u_centre_(of_model[..., :n].contiguous())
        if of_other is None:
            ab = hsic(u, u)
            aa = bb = ab.diagonal()
        else:
            v = u_centre_(of_other[..., :n].contiguous())
            ab = hsic(u, v)
            aa, bb = (w.square().sum((1, 2)) / (n * (n - 3)) for w in (u, v))
        terms = cka_terms(ab, aa, bb, view.fresh) | {
            "broken_model": aa.isfinite().logical_not(),
            "broken_other": bb.isfinite().logical_not(),
        }
        if self.without is Without.outliers:
            terms["removed_model"] = of_model[:, :REMOVED, n]
            if of_other is not None:
                terms["removed_other"] = of_other[:, :REMOVED, n]
        return terms

    def impossible(self, terms: dict[str, Tensor]) -> list[Impossibility]:
        """HSIC_1 of a layer with itself is a squared norm; between two layers it is an inner product."""
        aa, bb = terms["aa"], terms["bb"]
        bound = (aa.sqrt()[:, None] * bb.sqrt()[None, :]) * (1 + 1e-9)
        return [
            ("its HSIC with itself is negative", ("model",), aa < 0),
            ("its HSIC with itself is negative", ("other",), bb < 0),
            ("their |CKA| is above 1 + 1e-9", ("model", "other"), terms["ab"].abs() > bound),
        ]

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """One row per pair of layers: model_layer, other_layer, cka, se, minibatches."""
        rows = pd.Index(sums.axes["model"])
        columns = pd.Index(sums.axes.get("other", sums.axes["model"]))
        terms = {name: term.cpu().numpy() for name, term in sums.terms.items()}
        cka, se = cka_and_error(terms, int(sums.seen.sum()))
        table = pd.DataFrame(
            {
                "model_layer": rows.repeat(len(columns)),
                "other_layer": columns.take(np.tile(np.arange(len(columns)), len(rows))),
                "cka": cka.ravel(),
                "se": se.ravel(),
                "minibatches": int(sums.seen.sum()),
            }
        )
        return {"cka": table} | self._removed(sums)

    def _removed(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """What was removed, averaged over minibatches; no table unless `without` asks for it."""
        parts = [
            pd.DataFrame(
                sums.terms[f"removed_{role}"].cpu().numpy() / int(sums.seen.sum()),
                columns=["channels", "tokens", "variance"],
            ).assign(model=role, layer=names)[["model", "layer", "channels", "tokens", "variance"]]
            for role, names in sums.axes.items()
            if f"removed_{role}" in sums.terms
        ]
        return {"cka_outliers": pd.concat(parts, ignore_index=True)} if parts else {}

    def warnings(self, sums: Sums) -> list[str]:
        """Which layers have undefined CKA, and why."""
        warnings = []
        for role, self_hsic in (("model", "aa"), ("other", "bb")):
            for i, layer in enumerate(sums.axes.get(role, [])):
                broken = int(sums.terms[f"broken_{role}"][i])
                if broken:
                    warnings.append(
                        f"{layer} of the {role} has NaN or Inf in {broken} of "
                        f"{int(sums.seen.sum())} minibatches; its CKA is NaN"
                    )
                elif sums.terms[self_hsic][i] == 0:
                    warnings.append(
                        f"{layer} of the {role} is constant over the images; its CKA is 0/0, so NaN"
                    )
        return warnings

    def caption(self, figure: str, tables: dict[str, pd.DataFrame]) -> str:
        return "Without outliers" if "cka_outliers" in tables else ""

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        heatmap = plotting.heatmaps.heatmap(
            tables["cka"],
            x="other_layer",
            y="model_layer",
            value="cka",
            limits=(0, 1),
            xlabel=f"Layers {labels.other or labels.model}",
            ylabel=f"Layers {labels.model}",
            title=labels.data + (", without outliers" if "cka_outliers" in tables else ""),
            colour_label="CKA",
        )
        return {"cka": heatmap}
