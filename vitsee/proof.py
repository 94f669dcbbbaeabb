"""What cannot be true of a minibatch's terms, found before they are saved."""

from __future__ import annotations

from torch import Tensor

Impossibility = tuple[str, tuple[str, ...], Tensor]
"""A statement that cannot be true, the roles of the models whose layers the axes are, and where it holds."""


class Impossible(RuntimeError):
    """A number that no input can give: of a bug, or of failing hardware. It is not saved."""


class Doubts:
    """Impossibilities of the minibatches added since the last checkpoint, judged only there.

    They stay on the device until then, so that no minibatch waits for the device.
    """

    def __init__(self, axes: dict[str, list[str]]) -> None:
        self.axes = axes
        self.pending: list[tuple[int, Impossibility]] = []

    def add(self, minibatch: int, impossibilities: list[Impossibility]) -> None:
        self.pending += [(minibatch, one) for one in impossibilities]

    def settle(self) -> None:
        """Forget them if none holds. Raises Impossible, which names the first one's layers and minibatch."""
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
                f"a bug of vitsee or of a library, or failing hardware. What was saved before is kept"
            )
        self.pending.clear()
