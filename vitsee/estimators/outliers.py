"""Removes channels and tokens that stand out from all others, as the option `analysis.without` asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING

from vitsee.errors import UserError
from vitsee.estimators.tokens import Tokens
from vitsee.lazy import torch
from vitsee.setting import Layer

if TYPE_CHECKING:
    from torch import Tensor

CHANNEL = 8.0
"""A channel stands out if its standard deviation is above this many times the median over channels."""
TOKEN = 3.0
"""A token stands out if its norm is above this many times the median of the patch tokens of its image."""
REMOVED = 3
"""How many numbers describe what was removed."""


def without_outliers(x: Tensor, prefix: int = 0) -> tuple[Tensor, Tensor]:
    """Return (N, tokens, channels) features without outlier channels and tokens, and what was removed.

    Standard deviations of channels are over the images, pooled over tokens. Once outlier channels are
    removed, an outlier token becomes the mean of the other images' tokens at its place (0 if it stands out in all
    images), so it adds nothing to a centred Gram matrix. prefix: number of tokens before the patches; without patches,
    no token stands out. Medians are over what is not constant or 0. Removed, (3,) float64: channels; tokens, averaged
    over images; share of the centred variance. NaN never stands out.
    """
    x = x.float()
    variance = x.var(0, correction=0)
    energy = variance.mean(0, dtype=torch.float64)
    spread = energy.sqrt()
    out = spread > CHANNEL * spread[spread > 0].median() if (spread > 0).any() else spread > 0
    if out.any():
        x = x[..., ~out]
    norms = torch.linalg.vector_norm(x, dim=-1)
    patches = norms[:, prefix:]
    strange = torch.zeros_like(norms, dtype=torch.bool)
    if patches.shape[1]:
        usual = patches.masked_fill(patches == 0, torch.nan).nanmedian(1, keepdim=True).values
        strange = norms > TOKEN * usual
    if strange.any():
        there = (~strange)[..., None]
        mean = torch.where(there, x, 0).sum(0) / there.sum(0).clamp(min=1)
        x = torch.where(there, x, mean)
    left = x.var(0, correction=0).mean(0, dtype=torch.float64).sum()
    share = 1 - left / energy.sum()
    return x, torch.stack([out.sum().double(), strange.sum().double() / len(x), share])


class Without(Enum):
    """What is removed from the features before their Gram matrix is computed."""

    nothing = "nothing"
    outliers = "outliers"

    def require(self, layers: Mapping[str, Sequence[Layer]]) -> None:
        """Raise UserError if the channel axis of one of these layers (by role) is unknown."""
        if self is Without.nothing:
            return
        for role, watched in layers.items():
            for layer in watched:
                if layer.prefix is None and not layer.is_map and len(layer.shape) > 1:
                    raise UserError(
                        f"analysis.without=outliers: the channel axis of {layer.name} of the {role} "
                        f"is unknown (its output is {' x '.join(map(str, layer.shape))}, neither tokens nor "
                        f"a feature map); choose other layers with analysis.layers, such as blocks"
                    )

    def of(self, layer: Layer, output: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """Return the features of these tokens, (N, ...), and what was removed; None if nothing is to be removed."""
        features = tokens.of(layer, output)
        if self is Without.nothing:
            return features, None
        prefix = (layer.prefix or 0) if tokens is Tokens.all else 0
        features = layer.sequence(features) if len(layer.shape) > 1 else features[:, None]
        return without_outliers(features, prefix)


def beside(matrix: Tensor, removed: Tensor | None) -> Tensor:
    """Return an (N, N) matrix with one more column: what was removed, then zeros. Unchanged if `removed` is None."""
    if removed is None:
        return matrix
    column = matrix.new_zeros(len(matrix), 1)
    column[: len(removed), 0] = removed.to(column)
    return torch.cat([matrix, column], 1)
