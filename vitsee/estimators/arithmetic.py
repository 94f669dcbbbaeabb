"""Floating-point precision of the forward pass and of the statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vitsee.lazy import torch
from vitsee.options import Precision


@contextmanager
def forward_in(precision: Precision, device: str) -> Iterator[None]:
    """Run the block with forward passes in exactly this precision, whatever torch's defaults are."""
    with (
        tf32(precision is Precision.tf32),
        torch.autocast(device, torch.bfloat16, enabled=precision is Precision.bf16),
    ):
        yield


@contextmanager
def exact(device: str) -> Iterator[None]:
    """Run the block with exact float32, for statistics inside a forward pass of any precision."""
    with tf32(False), torch.autocast(device, enabled=False):
        yield


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Run the block with CUDA allowed, or not, to round the factors of float32 products to TF32 (10-bit mantissa)."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
