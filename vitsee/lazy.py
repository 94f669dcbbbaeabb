"""torch, imported on first use: listing, drawing and reporting do not need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
else:

    class _Torch:
        """Stands in for the module until one of its names is used."""

        def __getattr__(self, name: str) -> Any:
            import torch

            value = getattr(torch, name)
            vars(self)[name] = value  # later look-ups skip __getattr__
            return value

    torch = _Torch()

__all__ = ["torch"]
