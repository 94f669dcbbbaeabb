"""Reading layers while a model runs: each output is reduced inside its forward hook and then dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitsee.analysis import Layer
from vitsee.config import Precision

Measure = Callable[[Tensor], dict[str, Tensor]]


@contextmanager
def watch(
    net: nn.Module,
    layers: list[Layer],
    reduce: Callable[[Layer, Tensor], Tensor],
    precision: Precision,
) -> Iterator[Measure]:
    """Within the block, the yielded function runs the model and returns what `reduce` kept of each layer.

    It maps (N, 3, H, W) pixels to {layer name: reduced output}, in the order of `layers`. At no time
    is more than one output alive that the forward pass itself would not keep.
    """
    kept: dict[str, Tensor] = {}

    def keep(layer: Layer) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            with _exact(output.device.type):
                kept[layer.name] = reduce(layer, output)

        return hook

    def measure(pixels: Tensor) -> dict[str, Tensor]:
        kept.clear()
        with torch.inference_mode(), _forward(precision, pixels.device.type):
            net(pixels)
        return {layer.name: kept[layer.name] for layer in layers}

    handles = [net.get_submodule(l.name).register_forward_hook(keep(l)) for l in layers]
    try:
        yield measure
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _forward(precision: Precision, device: str) -> Iterator[None]:
    """Arithmetic of the forward pass: exactly what was asked for, whatever torch's defaults are."""
    with (
        _tf32(precision is Precision.tf32),
        torch.autocast(device, torch.bfloat16, enabled=precision is Precision.bf16),
    ):
        yield


@contextmanager
def _exact(device: str) -> Iterator[None]:
    """Statistics are computed in full float32 inside a forward pass of any precision."""
    with _tf32(False), torch.autocast(device, enabled=False):
        yield


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
