"""What modules return: a tensor, or a tuple or dictionary that holds one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def tensor_of(output: Any) -> Any:
    """Return the first tensor with features in an output, (N, ...); an output without one as it is.

    Tuples, lists and mappings (transformers' ModelOutput) are searched in order, each to the end before the next.
    """
    found = _first(output)
    return output if found is None else found


def _first(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.ndim >= 2 else None
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return next((found for each in output if (found := _first(each)) is not None), None)
    return None
