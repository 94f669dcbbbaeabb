"""The only state an analysis keeps: named sums, and which minibatches are in them.

Everything an analysis measures is a sum over minibatches, so two partial results combine by `+`.
Resuming, splitting over GPUs and submitting a SLURM array are therefore one operation, and `seen`
(itself a sum) says exactly which minibatches a result covers.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path

import torch
from torch import Tensor

from vitsee.errors import Incomplete

HEAD = b"vitsee sums 3\n"
"""How a file of sums begins; then come the SHA-256 of the rest, and the rest."""
SKIPPED = "skipped"
"""A term of the runner's own, which minibatches without such images leave out: (minibatches, batch_size),
1 where an image could not be decoded."""


class Damaged(Exception):
    """A file of sums is not as it was written."""


GROUPS = 10
"""Minibatch i is in group i modulo this; what is without one group tells how much the whole may be off."""
ALL = -1
"""The group of terms that are kept as one sum over all minibatches."""

Terms = dict[str, Tensor]


@dataclass
class Sums:
    """Named float64 tensors summed over minibatches, apart for each group of them.

    seen: (minibatches,) int64, how often each minibatch of the plan was added; 1 everywhere at the end.
    parts: the sums by group and name; they stay on the device of the first ones added.
    axes: what the positions along an axis are called, e.g. {"model": ["blocks.0", "blocks.1"]}.
    """

    seen: Tensor
    parts: dict[int, Terms] = field(default_factory=dict)
    axes: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def _whole(self) -> Terms:
        return reduce(_added, (self.parts[group] for group in sorted(self.parts)), {})

    @cached_property
    def terms(self) -> Terms:
        """The analysis's sums over all groups, by name."""
        return {name: term for name, term in self._whole.items() if name != SKIPPED}

    @property
    def skipped(self) -> list[tuple[int, int]]:
        """(minibatch, position in it) of the images that could not be decoded."""
        marks = self._whole.get(SKIPPED)
        return [] if marks is None else [(b, at) for b, at in marks.nonzero().tolist()]

    @property
    def groups(self) -> list[int]:
        """The groups that have sums of their own."""
        return sorted(self.parts.keys() - {ALL})

    def without(self, group: int) -> Sums:
        """What all minibatches but those of a group add up to."""
        seen = self.seen.clone()
        seen[group::GROUPS] = 0
        rest = {key: part for key, part in self.parts.items() if key != group}
        return Sums(seen, rest, self.axes)

    @classmethod
    def zero(cls, minibatches: int) -> Sums:
        """Nothing measured yet of a plan of so many minibatches."""
        return cls(seen=torch.zeros(minibatches, dtype=torch.int64))

    @classmethod
    def of(
        cls,
        index: int,
        minibatches: int,
        terms: Mapping[str, Tensor],
        axes: dict[str, list[str]],
        grouped: Callable[[str], bool] = lambda name: True,
    ) -> Sums:
        """The contribution of one minibatch. grouped: which terms have a sum for each group."""
        one = cls.zero(minibatches)
        one.seen[index] = 1
        for name, term in terms.items():
            group = index % GROUPS if grouped(name) else ALL
            one.parts.setdefault(group, {})[name] = term.double()
        return cls(one.seen, one.parts, axes)

    @property
    def names(self) -> set[str]:
        return {name for part in self.parts.values() for name in part}

    def __add__(self, more: Sums) -> Sums:
        if not self.parts or not more.parts:  # zero is the neutral element
            some = self if self.parts else more
            return Sums(self.seen + more.seen, some.parts, some.axes)
        if self.axes != more.axes or (self.names ^ more.names) - {SKIPPED}:
            raise ValueError(
                "these sums measure different things and cannot be added:\n"
                f"  {sorted(self.names)} over {self.axes}\n  {sorted(more.names)} over {more.axes}"
            )
        both = self.parts.keys() | more.parts.keys()
        parts = {g: _added(self.parts.get(g, {}), more.parts.get(g, {})) for g in sorted(both)}
        return Sums(self.seen + more.seen, parts, self.axes)

    def complete(self) -> Sums:
        """Itself, if every minibatch is in it exactly once. Raises Incomplete otherwise."""
        missing = (self.seen == 0).nonzero().flatten().tolist()
        twice = (self.seen > 1).nonzero().flatten().tolist()
        if missing or twice:
            parts = []
            if missing:
                parts.append(
                    f"{len(missing)} of {len(self.seen)} minibatches are missing {_few(missing)}"
                )
            if twice:
                parts.append(f"{len(twice)} are counted more than once {_few(twice)}")
            raise Incomplete(" and ".join(parts))
        return self

    def to(self, device: torch.device) -> Sums:
        """With its terms on the device (on the CPU for MPS, which has no float64)."""
        where = torch.device("cpu") if device.type == "mps" else device
        return Sums(self.seen, self._moved(where), self.axes)

    def _moved(self, device: torch.device) -> dict[int, Terms]:
        return {
            group: {name: term.to(device) for name, term in part.items()}
            for group, part in self.parts.items()
        }

    def packed(self, owner: str = "") -> bytes:
        """Plain tensors on the CPU and lists, with their checksum, for `load`. owner: whose sums they are."""
        buffer = io.BytesIO()
        parts = self._moved(torch.device("cpu"))
        torch.save({"owner": owner, "seen": self.seen, "parts": parts, "axes": self.axes}, buffer)
        content = buffer.getvalue()
        return HEAD + hashlib.sha256(content).digest() + content

    @classmethod
    def load(cls, path: Path, owner: str | None = None) -> Sums:
        """What `packed` made; no code in the file is run.

        owner: whose sums they must be, if that matters. Raises Damaged if a byte of the file has changed, or
        the sums are somebody else's.
        """
        packed = path.read_bytes()
        checked = len(HEAD) + hashlib.sha256().digest_size
        content = memoryview(packed)[checked:]
        if packed.startswith(HEAD[:12]) and not packed.startswith(HEAD):
            raise Damaged("it is of another version of vitsee")
        if packed[:checked] != HEAD + hashlib.sha256(content).digest():
            raise Damaged("it is cut off or changed: its checksum is wrong")
        try:
            stored = torch.load(io.BytesIO(content), weights_only=True)
            whose = stored.pop("owner")
            sums = cls(**stored)
            assert sums.seen.dtype is torch.int64
            assert sums.seen.ndim == 1
        except Exception as error:  # its checksum is right, so somebody else wrote it
            raise Damaged("it holds no sums of this version of vitsee") from error
        if owner not in (None, whose):
            raise Damaged("it is of another experiment, or of another version of the analysis")
        return sums


def _added(some: Terms, more: Terms) -> Terms:
    """Sums of both by name; what one lacks counts as 0."""
    both = {name: term + more[name].to(term.device) for name, term in some.items() if name in more}
    return {**some, **more, **both}


def _few(numbers: list[int]) -> str:
    return f"[{', '.join(map(str, numbers[:5]))}{', …' if len(numbers) > 5 else ''}]"
