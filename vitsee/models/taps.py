"""Reads layers while a model runs: each output is reduced inside its forward hook and then dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitsee import returned
from vitsee.analysis import Analysis, Layer
from vitsee.estimators.arithmetic import exact, forward_in
from vitsee.models import attention_hooks, residual
from vitsee.options import Precision

Measure = Callable[[Tensor], dict[str, Tensor]]
Attach = Callable[[nn.Module, Layer, Callable[[Any], None]], list[RemovableHandle]]


@contextmanager
def watch(
    net: nn.Module,
    watched: list[Layer],
    analysis: Analysis,
    precision: Precision,
    *,
    role: str = "model",
) -> Iterator[Measure]:
    """Yield a function that runs the model and returns the reduced output of each layer.

    It maps (N, 3, H, W) pixels to {layer name: reduced output}, in the order of `watched`. At most one
    output is kept alive beyond those that the forward pass itself keeps.
    """
    kept: dict[str, Tensor] = {}

    def keep(layer: Layer) -> Callable[[Any], None]:
        def deliver(output: Any) -> None:
            with exact(device):
                reduced = returned.of(analysis, "reduce", layer, output)
            # A view would change with the output, which the next layer may overwrite (an in-place ReLU).
            kept[layer.name] = reduced.clone() if _is_view(reduced, output) else reduced

        return deliver

    def measure(pixels: Tensor) -> dict[str, Tensor]:
        kept.clear()
        recorded = torch.enable_grad() if analysis.gradients else torch.inference_mode()
        with recorded, forward_in(precision, pixels.device.type):
            net(pixels)
        return {layer.name: kept[layer.name] for layer in watched}

    device = next((x.device.type for x in net.parameters()), "cpu")
    attach = ATTACH[analysis.reads_of(role)]
    handles = [handle for layer in watched for handle in attach(net, layer, keep(layer))]
    try:
        yield measure
    finally:
        for handle in handles:
            handle.remove()


def _is_view(reduced: Any, output: Any) -> bool:
    """Return whether this is a tensor that shares its memory with a tensor of the output."""
    if not isinstance(reduced, Tensor):
        return False  # which is refused later
    if isinstance(output, Tensor):
        return reduced.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
    parts = (
        output if isinstance(output, (tuple, list)) else getattr(output, "__dict__", {}).values()
    )
    return any(_is_view(reduced, part) for part in parts if isinstance(part, Tensor))


ATTACH: dict[str, Attach] = {
    "outputs": residual.attach_outputs,
    "attention": attention_hooks.attach,
    "attention and pooling": attention_hooks.attach,
    "residuals": residual.attach,
    "stream": residual.attach,
}
"""How to attach hooks, by what an analysis reads (`Analysis.reads`)."""

SURVEY: dict[str, Callable[[nn.Module, tuple[int, int, int]], list[Layer]]] = {
    "outputs": residual.survey_outputs,
    "attention": attention_hooks.survey,
    "attention and pooling": partial(attention_hooks.survey, pooling=True),
    "residuals": residual.survey,
    "stream": partial(residual.survey, everything=True),
}
"""How to list a model's readable layers in running order, by what an analysis reads."""
