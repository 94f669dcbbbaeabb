"""Builds models without drawing their random weights, for those that get all weights from a file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWS = {
    Tensor.uniform_,
    Tensor.normal_,
    Tensor.erfinv_,  # makes a normal distribution of a uniform one
    Tensor.clamp_,  # and cuts it off
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.kaiming_uniform_,
}


class Undrawn(TorchFunctionMode):
    """Within the block, parameters become NaN where modules would fill them with random numbers.

    To draw those of ViT-L takes seconds, and weights from a file replace them. Any that are not replaced
    cannot go unnoticed.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        filled = args[0] if args else kwargs.get("tensor")
        if func in DRAWS and isinstance(filled, nn.Parameter):
            with torch.no_grad():
                return filled.fill_(torch.nan)
        return func(*args, **kwargs)
