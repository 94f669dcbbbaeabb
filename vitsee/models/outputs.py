"""Finds the tensor in what a module returns, which may be a tuple or mapping."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def tensor_of(output: object, given: object = ()) -> Tensor | None:
    """Return a module's output; of several, in a tuple or mapping, the first that is not its input.

    Tensors for parts of images, whose first axis is longer, come last. given: the module's arguments. None if no
    tensor has features.
    """
    if isinstance(output, Tensor):
        return output
    inputs = {id(x) for x in flat(given)}
    tensors = [x for x in flat(output) if isinstance(x, Tensor) and x.ndim > 1]
    return min((x for x in tensors if id(x) not in inputs), key=len, default=None)


def flat(value: object) -> list[object]:
    """Return all items of a tuple, list or mapping, nested ones included."""
    inside = value.values() if isinstance(value, Mapping) else value
    if not isinstance(inside, (tuple, list)) and inside is value:
        return [value]
    return [x for one in inside for x in flat(one)]  # type: ignore[attr-defined]
