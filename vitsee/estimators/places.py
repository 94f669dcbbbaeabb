"""Gram matrices and HSIC of single places (tokens of a layer or patches of the input), and pooled maps.

Axes: T, P places (tokens, patches) in row-major order; N examples of a minibatch; F features of a place;
M = N (N - 1) / 2 pairs of examples.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from vitsee.estimators.kernels import float64_device
from vitsee.lazy import torch
from vitsee.setting import Layer

if TYPE_CHECKING:
    from torch import Tensor

_FEATURES = 4096
"""Number of features whose products are accumulated in float32; these sums are added in float64."""
_WORKSPACE = 2**22
"""Number of entries of float64 Gram matrices in memory at a time (32 MiB)."""
_PAIRS = 16384
"""Number of pairs of examples multiplied in float64 at a time."""


def representations(layer: Layer, output: Tensor) -> Tensor:
    """Return the representation of each place, (T, N, F): the tokens after the prefix, or a map's locations."""
    if layer.is_map:
        return layer.channels_first(output).flatten(2).permute(2, 0, 1)
    return output[:, layer.prefix :].transpose(0, 1)


def cut_into_patches(
    pixels: Tensor, grid: tuple[int, int], step: tuple[float, float] | None = None
) -> Tensor:
    """Cut the input into rows x columns patches, (N, C, H, W) -> (rows * columns, N, C * height * width).

    step: height and width of the model's own patches, counted from the upper left. Pixels beyond the last
    patch are dropped. Without it, patch (r, c) contains the pixels (y, x) with floor(y * rows / H) = r and
    floor(x * columns / W) = c, so every pixel is in exactly one patch. Smaller patches are padded with zeros,
    which do not vary and so do not count. The grid must not be finer than the pixels.
    """
    (height, width), (rows, columns) = pixels.shape[2:], grid
    down, right = step or (None, None)
    y = _pieces(height, rows, down, pixels.device)
    x = _pieces(width, columns, right, pixels.device)
    cut = (
        torch.nn.functional.pad(pixels, (0, 1, 0, 1))
        .index_select(2, y.flatten())
        .index_select(3, x.flatten())
    )
    cut = cut.view(*pixels.shape[:2], *y.shape, *x.shape)
    return cut.permute(2, 4, 0, 1, 3, 5).reshape(rows * columns, len(pixels), -1)


def _pieces(length: int, count: int, step: float | None, device: torch.device) -> Tensor:
    """Return the indices of `count` consecutive pieces of range(length), (count, longest), padded with `length`."""
    if step is None:
        ends = [-(-i * length // count) for i in range(count + 1)]
    else:
        ends = [min(length, math.ceil(i * step)) for i in range(count + 1)]
    longest = max(b - a for a, b in pairwise(ends))
    start = torch.tensor(ends, device=device)
    every = start[:-1, None] + torch.arange(longest, device=device)
    return torch.where(every < start[1:, None], every, length)


def pair_grams(x: Tensor) -> Tensor:
    """Return the U-centred linear-kernel Gram matrix of each place, (T, N, F) -> (T, M) float32.

    Only the pairs i < j are kept: the matrices are symmetric with zero diagonal (`kernels.u_centre`).
    Features are centred over the examples. As in `kernels.gram`, a place that varies by no more than
    rounding gives exact zeros. Only a few places are copied at a time. Raises ValueError if N < 4.
    """
    places, n = x.shape[:2]
    if n < 4:
        raise ValueError(f"unbiased HSIC needs at least 4 examples in a minibatch, got {n}")
    where = float64_device(x)
    first, second = torch.triu_indices(n, n, 1, device=where)
    kept = torch.empty(places, len(first), device=where)
    at_a_time = max(1, _WORKSPACE // n**2)
    for some, out in zip(x.detach().split(at_a_time), kept.split(at_a_time), strict=True):
        k = _centred_grams(some)
        k.diagonal(dim1=1, dim2=2).zero_()
        means = k.sum(2) / (n - 2)
        means -= means.sum(1, keepdim=True) / (2 * (n - 1))
        out.copy_(k[:, first, second] - means[:, first] - means[:, second])
    return kept


def _centred_grams(x: Tensor) -> Tensor:
    """Return the Gram matrix of each place's centred features, (T, N, F) -> (T, N, N) float64."""
    places, n = x.shape[:2]
    k = torch.zeros(places, n, n, dtype=torch.float64, device=float64_device(x))
    for part in x.split(_FEATURES, dim=2):
        # Subtracting the first example first makes equal features give exact zeros.
        centred = part.float() - part[:, :1].float()
        centred -= centred.mean(1, keepdim=True)
        k += (centred @ centred.mT).to(k)
    relative = max(torch.finfo(x.dtype).eps, 2e-6)
    rounding = n * (relative * torch.linalg.vector_norm(x[:, 0].float(), dim=1).to(k)) ** 2
    constant = k.diagonal(dim1=1, dim2=2).sum(1) <= rounding
    return k.masked_fill_(constant[:, None, None], 0)


def pair_hsic(u: Tensor, v: Tensor, n: int) -> Tensor:
    """Return HSIC_1 of every pair of places over n examples, (T, M) and (P, M) of `pair_grams` -> (T, P) float64.

    Song et al. 2012, eq. 5, as the inner product of U-centred Gram matrices, in which each pair counts twice.
    """
    products = torch.zeros(len(u), len(v), dtype=torch.float64, device=u.device)
    for a, b in zip(u.split(_PAIRS, dim=1), v.split(_PAIRS, dim=1), strict=True):
        products += a.double() @ b.double().mT
    return products * (2 / (n * (n - 3)))


def self_hsic(u: Tensor, n: int) -> Tensor:
    """Return HSIC_1 of each place with itself over n examples, (T, M) -> (T,) float64, >= 0."""
    return torch.linalg.vector_norm(u, dim=1, dtype=torch.float64).square() * (2 / (n * (n - 3)))


def locations(maps: Tensor, channels: int, grid: tuple[int, int]) -> Tensor:
    """Pool a CNN's maps to the grid of its last stage, (N, C, H, W) -> (N, rows x columns, D).

    The maps are cut into k x k patches, flattened so that D = C k² comes close to the last stage's channels,
    and averaged over the grid; for k see `patch_side` (Raghu et al. 2021, linear probes).
    """
    k = patch_side(tuple(maps.shape[1:]), channels, grid)
    patches = torch.nn.functional.pixel_unshuffle(maps, k)
    return torch.nn.functional.adaptive_avg_pool2d(patches, grid).flatten(2).mT


def patch_side(shape: tuple[int, ...], channels: int, grid: tuple[int, int]) -> int:
    """Return the largest k that divides a (C, H, W) map into at least the grid's patches, with C k² <= channels."""
    c, h, w = shape
    return max(
        k
        for k in range(1, min(h, w) + 1)
        if k == 1
        or (
            c * k * k <= channels
            and not h % k
            and not w % k
            and h // k >= grid[0]
            and w // k >= grid[1]
        )
    )
