"""Gram matrices, unbiased HSIC and summed absolute gradients.

Axes: A, B layers of the two models; N examples of a minibatch; F features of one example.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from vitsee.errors import UserError
from vitsee.estimators.arithmetic import tf32
from vitsee.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE = {"cpu": 2_560_000, "cuda": 2**24}
"""Number of values (features times examples) centred and multiplied at once: 10 MB fit into a CPU's cache, 64 MB
keep a GPU busy."""
_PIECE = {"cpu": 1000, "cuda": 16384}
"""Number of features whose products are accumulated in float32, few enough that features with outliers stay exact
to 1e-6. Pieces that are multiplied at once are added in float32, all others in float64."""
_ROWS = {"cpu": 64, "cuda": 128}
"""Smallest number of examples in a block of the Gram matrix. Blocks below the diagonal are mirrored, not computed."""
_CENTRE = 16
"""Number of examples, evenly spaced in the minibatch, whose mean is the centre. Few, because reading is slow."""


def gram(x: Tensor, rounding: str = "exact") -> Tensor:
    """Return the linear-kernel Gram matrix of (N, ...) features, for unbiased HSIC: (N, N) float64.

    Features with large means are centred near their mean over the examples. This does not change
    unbiased HSIC, because U-centring removes every term a_i + a_j (Szekely and Rizzo 2014), and it makes
    float32 products safe where means are much larger than standard deviations. Features that vary
    between the examples by no more than rounding count as constant: their Gram matrix is exactly 0. The
    features are read in pieces and never copied whole.

    rounding: of the factors before they are multiplied. exact: none. tf32 (CUDA) or bf16: of the centred
    features. native (CUDA): 16-bit features are multiplied as they are, not centred, since their products are
    exact in float32, and all others in tf32. The products are always summed in float32 and float64.
    Raises UserError for tf32 without CUDA.
    """
    if rounding == "tf32" and x.device.type != "cuda":
        raise UserError(
            f"analysis.products=tf32 works on CUDA devices only, not on {x.device.type}; "
            f"use analysis.products=auto, exact or bf16"
        )
    rows = _rows(x.detach())
    if fusable(rows):
        from vitsee.estimators import fused_gram

        return fused_gram.gram(rows, rounding, _noise(rows.dtype))
    k = gram_pieces(rows, rounding)
    return torch.where(k.diagonal().sum() <= _rounding(rows), torch.zeros_like(k), k)


def fusable(rows: Tensor) -> bool:
    """Return whether the Triton kernels multiply these (N, F) features."""
    return (
        rows.device.type == "cuda"
        and rows.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and len(rows) >= 4
        and rows.stride(1) == 1
        and _triton_runs(rows.device)
    )


@lru_cache
def _triton_runs(device: torch.device) -> bool:
    """Return whether Triton is installed, and the device has TF32 (NVIDIA, Ampere or later)."""
    return (
        find_spec("triton") is not None
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def gram_pieces(rows: Tensor, rounding: str = "exact") -> Tensor:
    """Return the sum of the Gram matrices of all centred pieces of the features, (N, F) -> (N, N) float64."""
    n, device = len(rows), rows.device.type
    k = torch.zeros(n, n, dtype=torch.float64, device=float64_device(rows))
    block = max(_ROWS.get(device, 128), n // 4)
    with tf32(True) if rounding in ("tf32", "native") else nullcontext():
        for pieces in _pieces(rows):
            centred = _centred(pieces, rounding)
            if rounding == "bf16":
                centred = centred.bfloat16()
            for start in range(0, n, block):
                products = _products(centred[:, start : start + block], centred[:, start:])
                k[start : start + block, start:] += products.to(k.device)
    return k.triu() + k.triu(1).mT


def _rows(x: Tensor) -> Tensor:
    """(N, ...) -> (N, F) without a copy, also for channels-last memory. The order of F may change."""
    order = sorted(range(1, x.ndim), key=lambda axis: x.stride()[axis], reverse=True)
    return x.permute(0, *order).flatten(1)


def _pieces(rows: Tensor) -> Iterator[Tensor]:
    """(N, F) -> views (pieces, N, features of a piece), which together contain every feature once."""
    n, features = rows.shape
    device = rows.device.type
    width = _width(features, _PIECE.get(device, 16384))
    whole = features // width * width
    at_once = max(1, _AT_ONCE.get(device, 2**24) // (n * width))
    for chunk in rows[:, :whole].split(at_once * width, dim=1):
        yield chunk.unflatten(1, (-1, width)).transpose(0, 1)
    if whole < features:
        yield rows[None, :, whole:]


@lru_cache
def _width(features: int, longest: int) -> int:
    """Return the width of equal pieces. They leave no remainder unless that takes twice as many pieces."""
    least = math.ceil(features / longest)
    fitting = (pieces for pieces in range(least, 2 * least) if features % pieces == 0)
    return features // next(fitting, least)


def _centred(pieces: Tensor, rounding: str) -> Tensor:
    """Return the pieces minus roughly their mean over the examples, (pieces, N, features) float32.

    Subtracting the same values from all examples does not change HSIC. The means only have to become small
    compared with the deviations, so the mean of a few examples suffices. Where means are already small,
    nothing is subtracted, which saves a copy (not on a GPU, where finding out costs a synchronisation).
    """
    some = pieces[:, :: max(1, pieces.shape[1] // _CENTRE)]
    mean = some.mean(1, keepdim=True, dtype=torch.float32)
    if pieces.device.type != "cpu":
        return pieces - mean
    if rounding == "exact" and pieces.dtype == torch.float32 and _small(mean, some):
        return pieces
    room = max(_AT_ONCE["cpu"], len(pieces[0]) * _PIECE["cpu"])
    return torch.sub(pieces, mean, out=_scratch(room)[: pieces.numel()].view(pieces.shape))


def _small(mean: Tensor, x: Tensor) -> bool:
    """Return whether the means (pieces, 1, features) are small compared with x (pieces, n, features)."""
    few = x[:, ::4]
    return bool(2 * mean.square().sum() <= few.square().sum() / few.shape[1])


@lru_cache(maxsize=2)
def _scratch(size: int) -> Tensor:
    """Return a reused buffer: on a CPU, allocating memory costs more than the arithmetic on it."""
    with torch.inference_mode(False):
        return torch.empty(size)


def _products(x: Tensor, y: Tensor) -> Tensor:
    """Return the sum of x yᵀ over pieces, in float32 for factors of any type."""
    if x.dtype == torch.bfloat16 and x.device.type == "cuda":
        products = torch.bmm(x, y.mT, out_dtype=torch.float32)
    else:
        products = torch.bmm(x.float(), y.float().mT)
    return products.sum(0)


def float64_device(x: Tensor) -> torch.device:
    """Return the device for float64 arithmetic on this tensor: its own, or the CPU for MPS."""
    return torch.device("cpu") if x.device.type == "mps" else x.device


def _rounding(rows: Tensor) -> Tensor:
    """Return the largest trace of a centred Gram matrix that rounding alone can produce, () float64."""
    norm = torch.linalg.vector_norm(rows[0].float())
    return len(rows) * (_noise(rows.dtype) * norm.to(float64_device(rows), torch.float64)) ** 2


def _noise(dtype: torch.dtype) -> float:
    """Return the largest deviation that rounding alone can produce, relative to the features."""
    return max(torch.finfo(dtype).eps, 2e-6)


def u_centre(k: Tensor) -> Tensor:
    """Return U-centred Gram matrices, (..., N, N) with zero diagonals (Szekely and Rizzo 2014, eq. 2.6).

    <u_centre(K), u_centre(L)> / (N (N - 3)) is HSIC_1 of K and L (Song et al. 2012, eq. 5).
    Raises ValueError if N < 4.
    """
    return u_centre_(k.clone())


def u_centre_(k: Tensor) -> Tensor:
    """Do what `u_centre` does, in place."""
    n = k.shape[-1]
    if n < 4:
        raise ValueError(f"unbiased HSIC needs at least 4 examples in a minibatch, got {n}")
    k.diagonal(dim1=-2, dim2=-1).zero_()
    means = u_means(k)
    k -= means[..., :, None]
    k -= means[..., None, :]
    k.diagonal(dim1=-2, dim2=-1).zero_()
    return k


def u_means(k: Tensor) -> Tensor:
    """Return m, (..., N), such that U-centring turns matrices with zero diagonals into K_ij - m_i - m_j."""
    n = k.shape[-1]
    means = k.sum(-1) / (n - 2)
    means -= means.sum(-1, keepdim=True) / (2 * (n - 1))
    return means


def hsic(u: Tensor, v: Tensor) -> Tensor:
    """Return HSIC_1 of every pair of U-centred Gram matrices, (A, N, N) and (B, N, N) -> (A, B).

    Song et al. 2012, eq. 5; used per minibatch by Nguyen et al. 2021, eq. 3. It may be negative for two
    layers. For a layer with itself it is a squared norm, so >= 0.
    """
    n = u.shape[-1]
    if u.device.type == "cuda":  # one product of so few rows would leave most of it idle
        pieces = max(size for size in range(1, 33) if n % size == 0)
        a, b = (w.reshape(len(w), pieces, -1).transpose(0, 1) for w in (u, v))
        return (a @ b.mT).sum(0) / (n * (n - 3))
    return u.flatten(1) @ v.flatten(1).mT / (n * (n - 3))


def absolute_gradients(values: Tensor, pixels: Tensor, at_once: int) -> Tensor:
    """Return |d values / d pixels| summed over channels, images and RGB: (N, C), (N, 3, H, W) -> (H, W) float64.

    The absolute value is taken of each channel's gradient (Luo et al. 2016). Images do not depend on each
    other, so the gradient of a channel's sum over images contains each image's own gradient. On a GPU,
    `at_once` channels share one backward pass if torch can vectorise it. On a CPU this would gain nothing.
    Values that do not depend on the pixels have gradient 0.
    """
    count = values.shape[1]
    total = torch.zeros(pixels.shape[-2:], dtype=torch.float64, device=float64_device(pixels))
    if not values.requires_grad:
        return total
    for start in range(0, count, at_once):
        channels = torch.arange(start, min(start + at_once, count), device=values.device)
        seeds = values.new_zeros(len(channels), *values.shape)
        seeds.scatter_(2, channels.view(-1, 1, 1).expand(-1, len(values), 1), 1)
        for gradients in _gradients(values, pixels, seeds, pixels.device.type != "cpu"):
            total += gradients.abs_().sum((0, 1, 2), dtype=torch.float32).to(total)
    return total


def _gradients(values: Tensor, pixels: Tensor, seeds: Tensor, vectorised: bool) -> Iterator[Tensor]:
    """Yield the gradients of all seeds with respect to the pixels, (some, N, 3, H, W) at a time."""
    if vectorised:
        try:
            yield torch.autograd.grad(
                values, pixels, seeds, retain_graph=True, is_grads_batched=True
            )[0]
            return
        except RuntimeError as error:
            if "vmap" not in str(error):  # not every operation supports vmap in every torch version
                raise
    for seed in seeds:
        yield torch.autograd.grad(values, pixels, seed, retain_graph=True)[0][None]
