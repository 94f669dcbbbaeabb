"""Who shares the work of one command: one process alone, or the member of a team of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


class Alone:
    """A process that nobody waits for: it shows its own progress and writes what it can."""

    writes = True
    """Whether it writes the tables once everything is measured."""

    def follow(self, items: Iterable[Item], title: str, total: int, show: bool) -> Iterable[Item]:
        """The items, counted on a display."""
        return tqdm(items, title, total, disable=not show)

    def meet(self) -> None:
        """Wait until the others have measured their parts of the pass."""


@dataclass
class Member(Alone):
    """A process of a team: it reports its progress to whoever started the team.

    line: to whoever started the team. It takes ("total", minibatches), ("done", 1), and ("measured", None),
    which is answered when the team may go on.
    """

    line: Connection
    writes: bool

    def follow(self, items: Iterable[Item], title: str, total: int, show: bool) -> Iterable[Item]:
        self.report("total", total)
        for item in items:
            yield item
            self.report("done", 1)

    def meet(self) -> None:
        self.report("measured", None)
        self.line.recv()

    def report(self, what: str, value: Any) -> None:
        self.line.send((what, value))
