"""torch, imported when it is first used: listing, drawing and reporting do without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
else:

    class _Torch:
        """Stands for the module until one of its names is asked for."""

        def __getattr__(self, name: str) -> Any:
            import torch

            value = getattr(torch, name)
            vars(self)[name] = value  # so that it is looked up once
            return value

    torch = _Torch()

__all__ = ["torch"]
