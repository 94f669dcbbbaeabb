"""The cost of a training run: floating-point operations and GPU hours."""

from __future__ import annotations

import torch

from vitsee.models import attention_hooks, timm_architecture
from vitsee.options import ModelOptions, Precision
from vitsee.training.recipes import Training

PEAK = {Precision.bf16: 312e12, Precision.tf32: 156e12, Precision.fp32: 19.5e12}
"""Peak FLOP/s of an A100."""
REACHED = 0.4
"""Share of the peak that a training typically reaches (Chowdhery et al. 2022, table 3)."""


def flops_of(model: ModelOptions) -> float:
    """Return the floating-point operations of a forward pass on one image."""
    from torch.utils.flop_counter import FlopCounterMode

    net = timm_architecture.skeleton(model).eval()
    size = timm_architecture.data_config(net)["input_size"]
    timm_architecture.refuse_unrunnable(model, net, size)
    attention_hooks.fuse(net, False)  # torch does not count all fused kernels
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *size, device="meta"))
    return float(counter.get_total_flops())


def expected(training: Training, steps: int) -> str:
    """Return a log line with the expected cost of the training."""
    recipe = training.recipe
    images = steps * recipe.batch_size
    flops = 3 * flops_of(training.model) * images
    hours = flops / (PEAK[recipe.precision] * REACHED) / 3600
    return (
        f"{recipe.name}: {steps:,} steps of {recipe.batch_size} images, {flops:.2g} FLOPs: about "
        f"{hours:.2g} GPU hours on an A100 at {REACHED:.0%} of its peak in {recipe.precision.value}"
    )
