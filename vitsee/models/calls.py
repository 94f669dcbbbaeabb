"""Sees every call of a torch function, to follow it or to compute something else."""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode


class Calls(TorchFunctionMode):
    """Runs the block with `call` in place of each call of a torch function; inside `call`, functions are torch's."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of func(*args, **kwargs), or something in its place."""
        return func(*args, **kwargs)
