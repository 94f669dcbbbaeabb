"""timm models with their weights: random, embedded, from a local file, or from the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitsee.config import Model

if TYPE_CHECKING:
    from torch import nn


def build(model: Model, *, seed: int | None = None) -> nn.Module:
    """The architecture with random weights drawn with `seed` (default: the model's own), on the CPU."""
    import timm
    import torch

    torch.manual_seed(model.seed if seed is None else seed)
    return timm.create_model(
        model.timm, pretrained=False, pretrained_cfg_overlay=dict(model.overlay), **model.args
    )
