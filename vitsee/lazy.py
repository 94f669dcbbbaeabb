"""torch and timm, imported when they are first used: listing, drawing and reporting work without them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import timm
    import torch
else:

    class _Later:
        """Stands for a module until one of its names is used."""

        def __init__(self, module: str) -> None:
            self._module = module

        def __getattr__(self, name: str) -> Any:
            value = getattr(import_module(self._module), name)
            vars(self)[name] = value  # so that it is looked up once
            return value

    timm, torch = _Later("timm"), _Later("torch")

__all__ = ["timm", "torch"]
