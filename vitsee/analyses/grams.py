"""Gram matrices of every layer, stored on disk: any number of models can be compared with one pass per model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.errors import UserError
from vitsee.estimators.kernels import gram
from vitsee.estimators.outliers import REMOVED, Without, beside
from vitsee.estimators.tokens import Tokens
from vitsee.estimators.triangles import pooled, to_scale, triangles
from vitsee.io import kept
from vitsee.io.tidy import Table, Whole
from vitsee.lazy import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.sums import Sums

log = logging.getLogger(__name__)


class Stored(Enum):
    """The type of the stored entries."""

    float32 = "float32"
    float16 = "float16"


class Features(Enum):
    """Which features are stored with the Gram matrices."""

    none = "none"
    pooled = "pooled"


@register
@dataclass(kw_only=True)
class Grams(Analysis):
    """How can many models be compared with one pass per model?

    For each layer and minibatch, this stores the linear-kernel Gram matrix of the images, U-centred as for HSIC_1
    (Szekely and Rizzo 2014), and the terms needed for distances between images. `vitsee compare` reads them.
    """

    models: ClassVar[tuple[int, ...]] = (1,)
    equal_minibatches: ClassVar[bool] = True
    unread: ClassVar[dict[str, str]] = {"limit_gb": "what is larger is refused"}
    ungrouped: ClassVar[tuple[str, ...]] = ("",)
    keeps: ClassVar[tuple[str, ...]] = (
        *("gram", "scale", "hsic", "variance", "pooled", "indices", "fresh", "removed"),
    )

    columns: ClassVar[dict[str, Table]] = {
        "grams": Table(
            {
                "layer": str,
                "minibatch": Whole(),
                "images": Whole(1),
                "variance": float,
                "hsic": float,
            },
            keys=("layer", "minibatch"),
        ),
        "grams_outliers": Table(
            {"layer": str, "channels": float, "tokens": float, "variance": float}, optional=True
        ),
    }
    later: ClassVar[dict[str, Any]] = {"without": "nothing"}

    name: str = "grams"
    layers: Any = "blocks"
    tokens: Tokens = Tokens.all
    """all: the whole output; cls: the class token; patches: all tokens except class and register tokens."""
    stored: Stored = Stored.float32
    """float16 halves the file and rounds each entry to 11 bits; docs/analyses/grams.md has the errors."""
    features: Features = Features.none
    """pooled: also store the mean of the patches and the class token, which `measure=procrustes` reads."""
    revised: ClassVar[dict[str, tuple[str, int]]] = {
        "without": ("outliers", 2),
        "features": ("pooled", 2),
    }
    without: Without = Without.nothing
    """outliers: leave out channels and tokens that stand out, as `cka` does."""
    limit_gb: float = 2.0
    """Maximum size of the file, in GB."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.limit_gb > 0:
            raise UserError(f"analysis.limit_gb must be more than 0, got {self.limit_gb:g}")
        if self.features is Features.pooled and self.without is Without.outliers:
            raise UserError(
                "analysis.features=pooled keeps every channel, and analysis.without=outliers leaves some out: "
                "use one of them"
            )

    def check(self, layers: dict[str, list[Layer]]) -> None:
        self.tokens.require(layers)
        self.without.require(layers)
        for layer in layers["model"]:
            shape = " x ".join(map(str, layer.shape))
            if self.features is Features.pooled and _pooled_size(layer) is None:
                raise UserError(
                    f"analysis.features=pooled: {layer.name} is neither tokens nor a map (its output is {shape}); "
                    f"use analysis.features=none, or choose other layers with analysis.layers"
                )

    def check_kept(self, minibatches: int, images: int) -> None:
        """Log the size of the file. Raises UserError if it is above `limit_gb`."""
        layers = self.setting.layers["model"]
        entry = 2 if self.stored is Stored.float16 else 4
        each = len(layers) * images * (images + 1) // 2 * entry
        if self.features is Features.pooled:
            each += 4 * images * sum(_pooled_size(layer) or 0 for layer in layers)
        size, limit = minibatches * each, self.limit_gb * 2**30
        what = (
            f"{len(layers)} layers of {minibatches:,} minibatches of {images:,} images: "
            f"{_words(size)} are kept"
        )
        if size > limit:
            raise UserError(
                f"analysis=grams: {what}, more than analysis.limit_gb={self.limit_gb:g}; keep fewer layers "
                f"(analysis.layers), use fewer images or a smaller batch_size, or allow more: "
                f"analysis.limit_gb={float(f'{size / 2**30 + 0.05:.1f}'):g}"
            )
        log.info("%s in %s", what, kept.NAME)

    def reduce(self, layer: Layer, output: Tensor) -> Tensor:
        """Gram matrix of one layer, and its pooled features: (N, ...) -> (N, N + F) float64.

        Without outliers, one more column encodes what was removed.
        """
        features, removed = self.without.of(layer, output, self.tokens)
        k = beside(gram(features), removed)
        if self.features is Features.none:
            return k
        means = pooled(output, layer.prefix, layer.class_token, layer.channels_last)
        return torch.cat([k, means.to(k)], 1)

    def observe(self, view: View) -> dict[str, Tensor]:
        """The terms stored for this minibatch: see `triangles` and `kept.Kept`.

        variance: total variance of each layer's features, half the mean squared distance.
        """
        n = view.images
        packed = list(view.model.values())
        gram = triangles(torch.stack([each[:, :n] for each in packed]))
        on_diagonal, above = _diagonal(n)
        hsic = gram[:, above].square().sum(1) * (2 / (n * (n - 3)))
        variance = gram[:, on_diagonal].mean(1)
        scaled, scale = to_scale(gram)
        terms = {
            "gram": scaled.to(getattr(torch, self.stored.value)),
            "scale": scale,
            "hsic": hsic,
            "variance": variance,
            "indices": torch.tensor(view.indices),
            "fresh": torch.tensor(view.fresh, dtype=torch.float64),
        }
        if self.without is Without.outliers:
            terms["removed"] = torch.stack([each[:REMOVED, n] for each in packed])
        if self.features is Features.pooled:
            for layer, each in zip(view.model, packed, strict=True):
                terms[f"pooled {layer}"] = each[:, n:].float()
        return terms

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """One row per layer and minibatch: layer, minibatch, images, variance, hsic (HSIC_1 with itself).

        grams_outliers: what was removed from each layer, averaged over minibatches, with without=outliers.
        """
        layers = sums.axes["model"]
        rows = [
            pd.DataFrame(
                {
                    "layer": layers,
                    "minibatch": minibatch,
                    "images": len(sums.kept[minibatch]["indices"]),
                    "variance": sums.kept[minibatch]["variance"].numpy(),
                    "hsic": sums.kept[minibatch]["hsic"].numpy(),
                }
            )
            for minibatch in sorted(sums.kept)
        ]
        tables = {"grams": pd.concat(rows, ignore_index=True)}
        if self.without is Without.outliers:
            removed = torch.stack([sums.kept[minibatch]["removed"] for minibatch in sums.kept])
            columns = dict(zip(("channels", "tokens", "variance"), removed.mean(0).mT, strict=True))
            tables["grams_outliers"] = pd.DataFrame({"layer": layers} | columns)
        return tables

    def files(self, sums: Sums) -> dict[str, bytes]:
        """The file that `vitsee compare` reads."""
        images, tensors = self.setting.images[-1], {}
        minibatches = sorted(sums.kept)
        for minibatch in minibatches:
            for name, tensor in sums.kept[minibatch].items():
                if name not in ("indices", "fresh", "variance", "removed"):
                    kind, _, layer = name.partition(" ")
                    tensors[f"{kind} {minibatch} {layer}".rstrip()] = tensor.numpy()
        index = kept.Index(
            model=self.setting.names["model"],
            data=images.fingerprint,
            layers=sums.axes["model"],
            minibatches=[
                [images.id(i) for i in sums.kept[minibatch]["indices"].tolist()]
                for minibatch in minibatches
            ],
            fresh=[float(sums.kept[minibatch]["fresh"]) for minibatch in minibatches],
            tokens=self._taken,
            precision=self.setting.precision,
            pooled=self.features is Features.pooled,
        )
        return {kept.NAME: kept.packed(tensors, index)}

    @property
    def _taken(self) -> str:
        """How the features were taken; `vitsee compare` shows this if results differ in it."""
        kept_back = " without outliers" if self.without is Without.outliers else ""
        return f"{self.tokens.value}{kept_back}"

    def warnings(self, sums: Sums) -> list[str]:
        """Which layers cannot be compared, and why."""
        hsic = torch.stack([sums.kept[minibatch]["hsic"] for minibatch in sorted(sums.kept)])
        warnings = []
        for layer, own in zip(sums.axes["model"], hsic.mT, strict=True):
            if broken := int((~own.isfinite()).sum()):
                warnings.append(
                    f"{layer} has NaN or Inf in {broken} of {len(own)} minibatches; its similarities are NaN"
                )
            elif not own.any():
                warnings.append(f"{layer} is constant over the images; its similarities are NaN")
        return warnings

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        """Effective dimensionality of the images' features, by layer."""
        means = tables["grams"].groupby("layer", sort=False)[["variance", "hsic"]].mean()
        with np.errstate(divide="ignore", invalid="ignore"):
            dimension = (means["variance"] ** 2 / means["hsic"]).to_numpy()
        line = plotting.line_plots.Line(dimension, labels.model, labels.model)
        drawn = plotting.line_plots.depth_lines(
            [line],
            xlabel="Layer",
            ylabel="Effective dimensionality\n(variance² / HSIC)",
            title=f"{labels.model}, {labels.data}",
        )
        return {"grams": drawn}


def _diagonal(n: int) -> tuple[Tensor, Tensor]:
    """Positions of the diagonal entries, and of those above it, among N (N + 1) / 2."""
    rows, columns = torch.triu_indices(n, n)
    return rows == columns, rows != columns


def _pooled_size(layer: Layer) -> int | None:
    """Number of pooled features of the layer; None if its output is not tokens, a map or a vector."""
    if layer.prefix is not None:
        class_token, patches = layer.class_token and layer.prefix, layer.shape[0] > layer.prefix
        return layer.shape[-1] * (2 if class_token and patches else 1)
    if layer.is_map:
        return layer.channels
    return layer.shape[0] if len(layer.shape) == 1 else None


def _words(size: float) -> str:
    return f"{size / 2**30:,.1f} GB" if size >= 2**30 else f"{size / 2**20:,.1f} MB"
