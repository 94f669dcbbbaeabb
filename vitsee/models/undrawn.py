"""Builds models without drawing random weights, for models that get all weights from a file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitsee.models.calls import Calls

DRAWS = {
    Tensor.uniform_,
    Tensor.normal_,
    Tensor.erfinv_,  # turns a uniform distribution into a normal one
    Tensor.clamp_,  # and truncates it
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.kaiming_uniform_,
}


class Undrawn(Calls):
    """Runs the block so that modules fill parameters with NaN instead of random numbers.

    Drawing those of ViT-L takes seconds, only for weights from a file to replace them. Parameters that are not
    replaced cannot go unnoticed.
    """

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        filled = args[0] if args else kwargs.get("tensor")
        if func in DRAWS and isinstance(filled, nn.Parameter):
            with torch.no_grad():
                return filled.fill_(torch.nan)
        return func(*args, **kwargs)
