"""The two roles of a process that runs a command: alone, or as a member of a team."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


class Alone:
    """A process that runs alone: it shows its progress and writes the tables."""

    writes = True
    """Whether the process writes the tables once everything is measured."""

    def follow(self, items: Iterable[Item], title: str, total: int, show: bool) -> Iterable[Item]:
        """Yield the items and show a progress bar."""
        return tqdm(items, title, total, disable=not show)

    def meet(self) -> None:
        """Wait until the other members have measured their parts of the pass."""


@dataclass
class Member(Alone):
    """A process of a team: it reports its progress to the process that started the team.

    line: connection to that process, which receives ("total", minibatches), ("done", 1) and
    ("measured", None), and answers the last when the team may continue.
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
