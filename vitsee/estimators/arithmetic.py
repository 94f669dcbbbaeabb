"""Which float arithmetic is used where: of a forward pass, of the products of a statistic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vitsee.options import Precision


@contextmanager
def forward(precision: Precision, device: str) -> Iterator[None]:
    """Arithmetic of the forward pass: exactly what was asked for, whatever torch's defaults are."""
    with (
        tf32(precision is Precision.tf32),
        torch.autocast(device, torch.bfloat16, enabled=precision is Precision.bf16),
    ):
        yield


@contextmanager
def exact(device: str) -> Iterator[None]:
    """Statistics are computed in full float32 inside a forward pass of any precision."""
    with tf32(False), torch.autocast(device, enabled=False):
        yield


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether CUDA may round the factors of float32 products to TF32 (10 bits of mantissa)."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
