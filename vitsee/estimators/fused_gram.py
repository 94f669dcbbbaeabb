"""Gram matrices on CUDA in one pass: a Triton kernel centres, rounds and multiplies features in registers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

LONGEST = 16384
"""Largest number of features whose products are added in float32. These sums are added in float64."""
CENTRE = 16
"""Number of examples, evenly spaced in the minibatch, whose mean is the centre."""
SMALL = 64
"""Up to this many examples fit into one block."""
TILE, CHUNK, FLAT = 16, 16, 512
"""`_finish`: the side of the piece of K that a program writes, and how many parts and sums it reads at once."""
PIECE = 1024
"""Number of features whose centre one program computes."""


@dataclass(frozen=True)
class Tuning:
    """How `_multiply` is launched: examples in a block of K, features read at once, warps, pipeline stages, and
    programs per multiprocessor."""

    side: int
    step: int
    warps: int
    stages: int
    programs: int


TUNING = {
    "none": Tuning(128, 64, 8, 3, 2),
    "bf16": Tuning(128, 32, 4, 3, 2),
    "tf32": Tuning(128, 32, 4, 4, 2),
    "tf32x3": Tuning(64, 32, 4, 3, 4),
}
"""The fastest settings of those tried on an H100, by arithmetic."""


def gram(rows: Tensor, rounding: str, noise: float) -> Tensor:
    """Return the Gram matrix of (N, F) float32, bfloat16 or float16 features: (N, N) float64.

    N is at least 4. An example's values are adjacent; the examples may be any distance apart. Terms of the form
    a_i + a_j are wrong, because features are centred only roughly or not at all: U-centring removes them.
    rounding: of the factors, see `kernels.gram`. noise: features that vary by no more than this share of an
    example's norm are constant, and their Gram matrix is exactly 0.
    """
    arithmetic, centred = _arithmetic(rows.dtype, rounding)
    how = TUNING[arithmetic]
    n, features = rows.shape
    stride, step = rows.stride(0), how.step
    size = SMALL if n <= SMALL else how.side
    side = triton.cdiv(n, size)
    blocks = side * side
    wanted = how.programs * _multiprocessors(rows.device) // (side * (side + 1) // 2)
    parts = max(1, wanted, triton.cdiv(features, LONGEST))
    span = triton.cdiv(triton.cdiv(features, parts), step) * step
    parts = triton.cdiv(features, span)
    products = rows.new_empty(parts, blocks, size, size, dtype=torch.float32)
    sums = rows.new_empty(parts, blocks, 2, dtype=torch.float32)
    k = rows.new_empty(n, n, dtype=torch.float64)
    pieces = triton.cdiv(features, PIECE)
    norms = rows.new_empty(pieces, dtype=torch.float32)
    centre = rows.new_empty(pieces * PIECE if centred else 1, dtype=torch.float32)
    _describe[pieces,](
        *(rows, centre, norms, stride, features, n // min(n, CENTRE), min(n, CENTRE)),
        *(PIECE, centred),
        num_warps=4,
    )
    aligned = (stride * rows.element_size()) % 16 == 0 and rows.data_ptr() % 16 == 0
    tiles = TensorDescriptor(rows, [n, features], [stride, 1], [size, step]) if aligned else rows
    _multiply[blocks, parts](
        *(rows, tiles, centre, products, sums, n, features, stride, span, side),
        *(size, step, arithmetic, centred, aligned),
        num_warps=how.warps,
        num_stages=how.stages,
    )
    _finish[blocks, size // TILE, size // TILE](
        *(products, sums, norms, k, n, side, parts, pieces, n * noise**2),
        *(size, TILE, CHUNK, FLAT),
        num_warps=4,
    )
    return k


def _arithmetic(dtype: torch.dtype, rounding: str) -> tuple[str, bool]:
    """Return how factors of this type are multiplied, and whether they are centred first."""
    if rounding == "native" and dtype in (torch.bfloat16, torch.float16):
        return "none", False
    if rounding == "bf16" and dtype == torch.bfloat16:
        return "none", False
    return {"exact": "tf32x3", "native": "tf32"}.get(rounding, rounding), True


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":  # Triton's interpreter
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _describe(
    rows, centre, norms, stride, features, apart, count, PIECE: tl.constexpr, CENTRED: tl.constexpr
):
    """Write the mean of `count` examples, spaced `apart`, and the squared norm of the first.

    centre: (pieces * PIECE,), 0 beyond the last feature. norms: (pieces,), which add up to the norm.
    """
    feature = tl.program_id(0) * PIECE + tl.arange(0, PIECE)
    there = feature < features
    first = tl.load(rows + feature, mask=there, other=0.0).to(tl.float32)
    tl.store(norms + tl.program_id(0), tl.sum(first * first, 0))
    if CENTRED:
        total = first
        for example in range(1, count):
            at = rows + (example * apart).to(tl.int64) * stride + feature
            total += tl.load(at, mask=there, other=0.0).to(tl.float32)
        tl.store(centre + feature, total / count)


@triton.jit
def _multiply(
    rows,
    tiles,
    centre,
    products,
    sums,
    n,
    features,
    stride,
    span,
    side,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    CENTRED: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Multiply two blocks of examples over one part of the features. Blocks below the diagonal are left out.

    products: (parts, blocks, SIZE, SIZE). sums: (parts, blocks, 2): the sum of the products on the diagonal of
    K, and of all products, or 0 for centred features: their trace needs no correction.
    """
    block, part = tl.program_id(0), tl.program_id(1)
    i, j = block // side, block % side
    if i > j:
        return
    begin = part * span
    end = tl.minimum(begin + span, features)
    slot = (part * side * side + block).to(tl.int64)
    within = tl.arange(0, SIZE)
    if i == j:
        total = _sum_of_products(
            *(rows, tiles, centre, i, j, n, features, stride, begin, end),
            *(SIZE, STEP, ARITHMETIC, CENTRED, ALIGNED, True),
        )
        diagonal = (within[:, None] == within[None, :]) & (i * SIZE + within < n)[:, None]
        tl.store(sums + slot * 2, tl.sum(tl.sum(tl.where(diagonal, total, 0.0), 1), 0))
    else:
        total = _sum_of_products(
            *(rows, tiles, centre, i, j, n, features, stride, begin, end),
            *(SIZE, STEP, ARITHMETIC, CENTRED, ALIGNED, False),
        )
        tl.store(sums + slot * 2, 0.0)
    tl.store(products + slot * SIZE * SIZE + within[:, None] * SIZE + within[None, :], total)
    if not CENTRED:
        exist = (i * SIZE + within < n)[:, None] & (j * SIZE + within < n)[None, :]
        tl.store(sums + slot * 2 + 1, tl.sum(tl.sum(tl.where(exist, total, 0.0), 1), 0))
    else:
        tl.store(sums + slot * 2 + 1, 0.0)


@triton.jit
def _sum_of_products(
    rows,
    tiles,
    centre,
    i,
    j,
    n,
    features,
    stride,
    begin,
    end,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    CENTRED: tl.constexpr,
    ALIGNED: tl.constexpr,
    SAME: tl.constexpr,
):
    """Return the products of blocks i and j over the features from `begin` to `end`, (SIZE, SIZE) float32."""
    within, along = tl.arange(0, SIZE), tl.arange(0, STEP)
    # Examples beyond the last are read as the last one, or as zeros; their products are never used.
    from_i = rows + tl.minimum(i * SIZE + within, n - 1)[:, None].to(tl.int64) * stride
    from_j = rows + tl.minimum(j * SIZE + within, n - 1)[:, None].to(tl.int64) * stride
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for at in range(begin, end, STEP):
        feature = at + along
        if ALIGNED:
            a = tiles.load([i * SIZE, at])
        else:
            a = tl.load(from_i + feature[None, :], mask=(feature < features)[None, :], other=0.0)
        if SAME:
            b = a
        elif ALIGNED:
            b = tiles.load([j * SIZE, at])
        else:
            b = tl.load(from_j + feature[None, :], mask=(feature < features)[None, :], other=0.0)
        if CENTRED:
            middle = tl.load(centre + feature)[None, :]
            a = a.to(tl.float32) - middle
            b = b.to(tl.float32) - middle
        if ARITHMETIC == "none":
            total = tl.dot(a, tl.trans(b), total)
        elif ARITHMETIC == "bf16":
            total = tl.dot(a.to(tl.bfloat16), tl.trans(b.to(tl.bfloat16)), total)
        else:
            total = tl.dot(a, tl.trans(b), total, input_precision=ARITHMETIC)
    return total


@triton.jit
def _finish(
    products,
    sums,
    norms,
    k,
    n,
    side,
    parts,
    pieces,
    noise,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    FLAT: tl.constexpr,
):
    """Add the parts in float64 and write a piece of K and its mirror image, or zeros if K is only rounding.

    noise: the largest trace of the centred K that counts as rounding, over the squared norm of an example.
    """
    block = tl.program_id(0)
    i, j = block // side, block % side
    if i > j:
        return
    trace = tl.zeros((FLAT,), tl.float64)
    for start in range(0, parts * side * side, FLAT):
        slot = start + tl.arange(0, FLAT)
        row, column = slot % (side * side) // side, slot % side
        there = (slot < parts * side * side) & (row <= column)
        diagonal = tl.load(sums + slot * 2, mask=there, other=0.0).to(tl.float64)
        summed = tl.load(sums + slot * 2 + 1, mask=there, other=0.0).to(tl.float64)
        trace += diagonal - tl.where(row == column, 1.0, 2.0) * summed / n
    norm = tl.zeros((FLAT,), tl.float64)
    for start in range(0, pieces, FLAT):
        piece = start + tl.arange(0, FLAT)
        norm += tl.load(norms + piece, mask=piece < pieces, other=0.0).to(tl.float64)
    constant = tl.sum(trace, 0) <= noise * tl.sum(norm, 0)
    part = tl.arange(0, CHUNK)
    row = tl.program_id(1) * TILE + tl.arange(0, TILE)
    column = tl.program_id(2) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.float64)
    for start in range(0, parts, CHUNK):
        slot = ((start + part) * side * side + block).to(tl.int64)
        at = slot[:, None, None] * SIZE * SIZE + row[None, :, None] * SIZE + column[None, None, :]
        piece = tl.load(products + at, mask=(start + part < parts)[:, None, None], other=0.0)
        total += tl.sum(piece.to(tl.float64), 0)
    total = tl.where(constant, 0.0, total)
    row, column = i * SIZE + row, j * SIZE + column
    upper = (column[None, :] < n) & (row[:, None] <= column[None, :])
    tl.store(k + row[:, None].to(tl.int64) * n + column[None, :], total, mask=upper)
    tl.store(k + column[None, :].to(tl.int64) * n + row[:, None], total, mask=upper)
