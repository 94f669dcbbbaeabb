"""Tensor formulas, one function per equation, nothing else: no state, no configuration, no files.

Axes: A, B layers of the two models; N examples of a minibatch; F features of one example.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache

import torch
from torch import Tensor

from vitsee.arithmetic import tf32
from vitsee.errors import UserError

_WIDTH = {"cpu": 8192, "cuda": 65536}
"""Features of all examples that are centred at a time: what a CPU's cache holds, and enough work for a GPU."""
_PIECE = {"cpu": 8192, "cuda": 16384}
"""Features whose products are summed in float32 before float64 takes over; so few keep features with
outliers exact to 1e-6."""
_ROWS = {"cpu": 64, "cuda": 128}
"""Least examples of a block of the Gram matrix; blocks below the diagonal are mirrored, not computed."""


def gram(x: Tensor, product: str = "fp32") -> Tensor:
    """Linear-kernel Gram matrix of (N, ...) features, centred over the examples: (N, N) float64.

    Centring does not change unbiased HSIC, because U-centring removes every term a_i + a_j
    (Szekely and Rizzo 2014), and makes float32 products safe where means are much larger than
    standard deviations. Features that do not vary between the examples beyond rounding count as
    constant: their Gram matrix is exactly 0. The features are read in chunks and never copied whole.
    product: how the centred features are rounded before they are multiplied: fp32 (not at all), tf32
    (by CUDA) or bf16; the products are summed in float32 and float64 whatever it is. Raises UserError
    for tf32 where there is no CUDA.
    """
    if product == "tf32" and x.device.type != "cuda":
        raise UserError(
            f"analysis.products=tf32 exists on CUDA devices only, not on {x.device.type}; "
            f"use analysis.products=fp32 or bf16"
        )
    rows = _rows(x.detach())
    k = gram_chunks(rows, product)
    return torch.where(k.diagonal().sum() <= _rounding(rows), torch.zeros_like(k), k)


def gram_chunks(rows: Tensor, product: str = "fp32") -> Tensor:
    """Sum over chunks of the features of the centred chunk's Gram matrix, (N, F) -> (N, N) float64."""
    n, device = len(rows), rows.device.type
    k = torch.zeros(n, n, dtype=torch.float64, device=float64_device(rows))
    with tf32(True) if product == "tf32" else nullcontext():
        for chunk in rows.split(_WIDTH.get(device, 65536), dim=1):
            centred = _centred(chunk)
            if product == "bf16":
                centred = centred.bfloat16()
            block = max(_ROWS.get(device, 128), n // 4)
            _add_products(k, centred, _PIECE.get(device, 16384), block)
    return k.triu() + k.triu(1).mT


def _rows(x: Tensor) -> Tensor:
    """(N, ...) -> (N, F) without a copy, also where channels come last in memory; F in any order."""
    if x.ndim == 4 and not x.is_contiguous():
        x = x.permute(0, 2, 3, 1)
    return x.flatten(1)


def _centred(chunk: Tensor) -> Tensor:
    """The chunk minus its mean over the examples, (N, F) float32.

    The mean may be rounded as it likes: what is subtracted from all examples alike changes nothing.
    """
    mean = chunk.mean(0, dtype=torch.float32)
    if chunk.device.type != "cpu":
        return chunk - mean
    out = _scratch(len(chunk) * _WIDTH["cpu"])[: chunk.numel()].view(chunk.shape)
    return torch.sub(chunk, mean, out=out)


@lru_cache(maxsize=2)
def _scratch(size: int) -> Tensor:
    """Memory that is used again and again: new memory costs a CPU more than the arithmetic on it."""
    with torch.inference_mode(False):
        return torch.empty(size)


def _add_products(k: Tensor, x: Tensor, piece: int, block: int) -> None:
    """Add x xᵀ to the blocks on and above the diagonal of k, piece by piece of the features."""
    whole = x.shape[1] // piece * piece
    for part, width in ((x[:, :whole], piece), (x[:, whole:], x.shape[1] - whole)):
        if part.shape[1]:
            pieces = part.unflatten(1, (-1, width)).transpose(0, 1)
            for start in range(0, len(x), block):
                products = _products(pieces[:, start : start + block], pieces[:, start:])
                k[start : start + block, start:] += products.to(k.device)


def _products(x: Tensor, y: Tensor) -> Tensor:
    """Sum over pieces of x yᵀ, each piece summed in float32 whatever the factors are, pieces in float64."""
    if len(x) == 1 and x.dtype == torch.float32:
        return x[0] @ y[0].mT
    if x.dtype == torch.bfloat16 and x.device.type == "cuda":
        products = torch.bmm(x, y.mT, out_dtype=torch.float32)
    else:
        products = x.float() @ y.float().mT
    return products.sum(0, dtype=torch.float64)


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


def absolute_gradients(values: Tensor, pixels: Tensor, at_once: int) -> Tensor:
    """Sum over channels, images and RGB of |d values / d pixels|: (N, C), (N, 3, H, W) -> (H, W) float64.

    The absolute value is that of each channel's gradient (Luo et al. 2016). Images do not depend on
    each other, so that the gradient of a channel's sum over images is every image's own. `at_once`
    channels share one vectorised backward pass. Values that do not depend on the pixels have gradient 0.
    """
    count = values.shape[1]
    total = torch.zeros(pixels.shape[-2:], dtype=torch.float64, device=float64_device(pixels))
    if not values.requires_grad:
        return total
    for start in range(0, count, at_once):
        channels = torch.arange(start, min(start + at_once, count), device=values.device)
        seeds = values.new_zeros(len(channels), *values.shape)
        seeds.scatter_(2, channels.view(-1, 1, 1).expand(-1, len(values), 1), 1)
        (gradients,) = torch.autograd.grad(
            values, pixels, seeds, retain_graph=True, is_grads_batched=True
        )
        total += gradients.abs_().sum((0, 1, 2), dtype=torch.float32).to(total)
    return total
