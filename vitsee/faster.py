"""How much time TF32 would save a run on a GPU, measured with its own models, and how accurate it is."""

from __future__ import annotations

import time

import torch
from torch import nn

from vitsee.estimators.arithmetic import forward_in
from vitsee.options import Precision
from vitsee.study import Study

LEAST_SECONDS = 20
"""Shorter runs get no advice."""
LEAST_RATIO = 1.3
MOVED = 2e-4
"""TF32 changed no CKA of a trained ViT by more than this (docs/benchmarks.md)."""


def advice(study: Study, seconds: float, standard_error: float | None) -> str | None:
    """Return a closing line for a run that TF32 would have made much faster; None for other runs.

    seconds: how long the measurement took. standard_error: the median of the main table's, if it has any.
    """
    on_cuda = study.device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
    chosen = study.experiment.precision is not Precision.fp32
    if seconds < LEAST_SECONDS or chosen or not on_cuda or study.experiment.analysis.weights_only:
        return None
    exact, rounded = (
        seconds_of(study, precision) for precision in (Precision.fp32, Precision.tf32)
    )
    return said(exact / rounded, standard_error)


def said(ratio: float, standard_error: float | None) -> str | None:
    """Return the advice if TF32 makes the models this many times as fast; None if that is too little."""
    if ratio < LEAST_RATIO:
        return None
    beside = f"; the median standard error above is {standard_error:.1g}" if standard_error else ""
    return (
        f"precision=tf32 runs these models {ratio:.1f} times as fast on this GPU; "
        f"it moved CKA by less than {MOVED:g} in tests with trained models{beside}"
    )


def seconds_of(study: Study, precision: Precision) -> float:
    """Return how long the models' forward passes take for one minibatch."""
    taken = [_seconds(m.net, m.data["input_size"], study, precision) for m in study.models.values()]
    return sum(taken)


def _seconds(
    net: nn.Module, size: tuple[int, int, int], study: Study, precision: Precision
) -> float:
    pixels = torch.randn(study.experiment.batch_size, *size, device=study.device)
    with torch.inference_mode(), forward_in(precision, study.device.type):
        net(pixels)  # cuDNN chooses its algorithms
        _wait(study.device)
        began = time.perf_counter()
        net(pixels)
        _wait(study.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
