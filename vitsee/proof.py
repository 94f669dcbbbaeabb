"""Sanity checks of a minibatch's terms, made before the terms are saved."""

from __future__ import annotations

from torch import Tensor

Impossibility = tuple[str, tuple[str, ...], Tensor]
"""A statement that must never hold, the role of the model for each axis of layers, and a mask of where it
holds."""


class Impossible(RuntimeError):
    """A number that no input can produce, caused by a bug or failing hardware. It is not saved."""


class Doubts:
    """The checks of the minibatches since the last save, evaluated only at the next one.

    Until then the masks stay on the device, so that minibatches need no synchronisation.
    """

    def __init__(self, axes: dict[str, list[str]]) -> None:
        self.axes = axes
        self.pending: list[tuple[int, Impossibility]] = []

    def add(self, minibatch: int, impossibilities: list[Impossibility]) -> None:
        self.pending += [(minibatch, one) for one in impossibilities]

    def settle(self) -> None:
        """Evaluate and discard the checks. Raises Impossible with the layers and minibatch of the first failure."""
        for minibatch, (statement, roles, mask) in self.pending:
            if not mask.any():
                continue
            place = mask.nonzero()[0].tolist()
            layers = (
                f"{self.axes.get(role, self.axes['model'])[i]} of the {role}"
                for role, i in zip(roles, place, strict=True)
            )
            raise Impossible(
                f"minibatch {minibatch}, {' and '.join(layers)}: {statement}. No input can give this: it is "
                f"a bug in vitsee or in a library, or failing hardware. Everything saved so far is kept"
            )
        self.pending.clear()
