"""Tensor formulas, one function per equation, nothing else: no state, no configuration, no files.

Axes: A, B layers of the two models; N examples of a minibatch; F features of one example.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_WIDTH = {"cpu": 4096, "cuda": 65536}
"""Features of all examples that are centred and multiplied at a time.

So few products are summed in float32 before float64 takes over, and so little memory is added. On a CPU
a chunk fits the cache, and features with outliers are exact to 1e-6; a GPU wants more work at a time.
"""


def gram(x: Tensor) -> Tensor:
    """Linear-kernel Gram matrix of (N, ...) features, centred over the examples: (N, N) float64.

    Centring does not change unbiased HSIC, because U-centring removes every term a_i + a_j
    (Szekely and Rizzo 2014), and makes float32 products safe where means are much larger than
    standard deviations. Features that do not vary between the examples beyond rounding count as
    constant: their Gram matrix is exactly 0. The features are read in chunks and never copied whole.
    """
    rows = x.detach().flatten(1)
    k = gram_chunks(rows)
    return torch.where(k.diagonal().sum() <= _rounding(rows), torch.zeros_like(k), k)


def gram_chunks(rows: Tensor) -> Tensor:
    """Sum over chunks of the features of the centred chunk's Gram matrix, (N, F) -> (N, N) float64."""
    n = len(rows)
    width = _CHUNK_WIDTH.get(rows.device.type, 65536)
    k = torch.zeros(n, n, dtype=torch.float64, device=float64_device(rows))
    for chunk in rows.split(width, dim=1):
        # The first example goes first: equal features then give exact zeros.
        centred = chunk.float() - chunk[:1].float()
        centred -= centred.mean(0)
        k += (centred @ centred.mT).to(k)
    return k


def float64_device(x: Tensor) -> torch.device:
    """Where float64 arithmetic on this tensor's data is done: its own device, or the CPU for MPS."""
    return torch.device("cpu") if x.device.type == "mps" else x.device


def _rounding(rows: Tensor) -> Tensor:
    """Largest trace of a centred Gram matrix that rounding alone could make, () float64."""
    relative = max(torch.finfo(rows.dtype).eps, 2e-6)
    norm = torch.linalg.vector_norm(rows[0].float())
    return len(rows) * (relative * norm.to(float64_device(rows), torch.float64)) ** 2


def u_centre(k: Tensor) -> Tensor:
    """U-centred Gram matrix, (N, N) -> (N, N) with zero diagonal (Szekely and Rizzo 2014, eq. 2.6).

    <u_centre(K), u_centre(L)> / (N (N - 3)) is HSIC_1 of K and L (Song et al. 2012, eq. 5).
    Raises ValueError if N < 4.
    """
    n = k.shape[-1]
    if n < 4:
        raise ValueError(f"unbiased HSIC needs at least 4 examples in a minibatch, got {n}")
    k = k.clone().fill_diagonal_(0)
    means = k.sum(-1) / (n - 2)
    means -= means.sum() / (2 * (n - 1))
    return (k - means[:, None] - means[None, :]).fill_diagonal_(0)


def hsic(u: Tensor, v: Tensor) -> Tensor:
    """HSIC_1 of every pair of U-centred Gram matrices, (A, N, N) and (B, N, N) -> (A, B).

    Song et al. 2012, eq. 5; used per minibatch by Nguyen et al. 2021, eq. 3. May be negative for
    two layers; of a layer with itself it is a squared norm, so >= 0.
    """
    n = u.shape[-1]
    return u.flatten(1) @ v.flatten(1).mT / (n * (n - 3))
