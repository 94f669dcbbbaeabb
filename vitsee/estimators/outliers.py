"""Channels and tokens that stand out from all others, and features without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitsee.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

CHANNEL = 8.0
"""A channel stands out if its standard deviation is above this many times that of the median channel."""
TOKEN = 3.0
"""A token stands out if its norm is above this many times the median of the patch tokens of its image."""
REMOVED = 3
"""How many numbers say what was removed."""


def without_outliers(x: Tensor, prefix: int = 0) -> tuple[Tensor, Tensor]:
    """Return (N, tokens, channels) features without outlier channels and tokens, and what was removed.

    Standard deviations of channels are over the images, pooled over tokens. Once outlier channels are left
    out, an outlier token gets the mean of the other images' tokens at its place (0 if it stands out in all
    images), so that it adds nothing to a centred Gram matrix. prefix: the number of tokens before the
    patches. Removed, (3,) float64: channels; tokens, mean over images; share of the centred variance. NaN
    never stands out.
    """
    x = x.float()
    variance = x.var(0, correction=0)
    energy = variance.mean(0, dtype=torch.float64)
    spread = energy.sqrt()
    out = spread > CHANNEL * spread.median()
    if out.any():
        x = x[..., ~out]
    norms = torch.linalg.vector_norm(x, dim=-1)
    strange = norms > TOKEN * norms[:, prefix:].median(1, keepdim=True).values
    if strange.any():
        there = (~strange)[..., None]
        mean = torch.where(there, x, 0).sum(0) / there.sum(0).clamp(min=1)
        x = torch.where(there, x, mean)
    left = x.var(0, correction=0).mean(0, dtype=torch.float64).sum()
    share = 1 - left / energy.sum()
    return x, torch.stack([out.sum().double(), strange.sum().double() / len(x), share])
