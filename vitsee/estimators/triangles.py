"""What is stored of layers: packed Gram matrices (U-centred products and distances) and pooled features.

Axes: L layers; N examples of a minibatch; M = N (N + 1) / 2 entries on and above the diagonal, row by row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitsee.estimators.kernels import u_centre_, u_means
from vitsee.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def triangles(k: Tensor) -> Tensor:
    """Return the upper triangles of U-centred Gram matrices, with their diagonals, (L, N, N) -> (L, M) float64.

    Above the diagonal is u_ij = K_ij - m_i - m_j (Szekely and Rizzo 2014, eq. 2.6), of which HSIC_1 is the inner
    product. U-centring drops the diagonal, and with it the distances, so s_i = K_ii - 2 m_i takes its
    place: the squared distance between two examples is K_ii + K_jj - 2 K_ij = s_i + s_j - 2 u_ij.
    """
    n = k.shape[-1]
    u = k.clone()
    diagonal = u.diagonal(dim1=-2, dim2=-1).clone()
    u.diagonal(dim1=-2, dim2=-1).zero_()
    s = diagonal - 2 * u_means(u)
    u_centre_(u).diagonal(dim1=-2, dim2=-1).copy_(s)
    rows, columns = torch.triu_indices(n, n, device=k.device)
    return u[:, rows, columns]


def to_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of values divided by a power of two that makes the largest at most 1, and these powers.

    (L, M) float64 -> (L, M), (L,). The division is exact, and then even float16 can hold the values. Rows of
    zeros, and rows with NaN or Inf, are left unchanged.
    """
    largest = values.abs().amax(1)
    usable = (largest > 0) & largest.isfinite()
    scale = torch.where(usable, 2.0 ** largest.where(usable, 1.0).log2().ceil(), 1.0)
    return values / scale[:, None], scale


def pooled(output: Tensor, prefix: int | None, class_token: bool, channels_last: bool) -> Tensor:
    """Return pooled features, (N, ...) -> (N, F) float32: the mean over the patches, then the class token,
    as far as the output has them.

    prefix: number of class and other tokens before the patches, None if the output is not a sequence of tokens.
    Maps are averaged over their places, and outputs with one axis are left unchanged.
    """
    x = output.float()
    if prefix is not None:
        parts = [x[:, prefix:].mean(1)] if x.shape[1] > prefix else []
        parts += [x[:, 0]] if class_token and prefix else []
        return torch.cat(parts or [x.mean(1)], 1)
    if x.ndim == 2:
        return x
    return x.mean((1, 2)) if channels_last else x.mean((2, 3))
