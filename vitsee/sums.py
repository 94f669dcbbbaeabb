"""The sums that an analysis adds up over minibatches, and the files that hold them.

Everything an analysis measures on images is a sum over minibatches, so two partial results combine by `+`.
Resuming, splitting over GPUs and submitting a SLURM array are therefore the same operation, and `seen`
(itself a sum) says exactly which minibatches a result covers.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING

from vitsee.errors import Incomplete
from vitsee.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

HEAD = b"vitsee sums 3\n"
"""The first bytes of a file of sums, followed by the SHA-256 of the content and the content."""
SKIPPED = "skipped"
"""The runner's own term, (minibatches, batch_size): 1 where an image could not be decoded. Minibatches without
such images lack it."""


class Damaged(Exception):
    """A file of sums was changed or cut off, or belongs to a different experiment."""


GROUPS = 10
"""Minibatch i belongs to group i modulo this number. Leaving out one group at a time gives confidence intervals."""
ALL = -1
"""The group of terms that are kept as one sum over all minibatches."""

Terms = dict[str, "Tensor"]


@dataclass
class Sums:
    """Named float64 tensors summed over minibatches, separately for each group of minibatches.

    seen: (minibatches,) int64, how often each minibatch of the plan was added; finally 1 everywhere.
    parts: the sums by group and name, on the device of the first sums added.
    axes: labels of the positions along each axis, e.g. {"model": ["blocks.0", "blocks.1"]}.
    kept: terms that are not summed, by minibatch and name, in their own types, on the CPU.
    """

    seen: Tensor
    parts: dict[int, Terms] = field(default_factory=dict)
    axes: dict[str, list[str]] = field(default_factory=dict)
    kept: dict[int, Terms] = field(default_factory=dict)

    @cached_property
    def _whole(self) -> Terms:
        return reduce(_added, (self.parts[group] for group in sorted(self.parts)), {})

    @cached_property
    def terms(self) -> Terms:
        """The analysis's sums over all groups, by name."""
        return {name: term for name, term in self._whole.items() if name != SKIPPED}

    @property
    def skipped(self) -> list[tuple[int, int]]:
        """The images that could not be decoded, as (minibatch, position in it)."""
        marks = self._whole.get(SKIPPED)
        return [] if marks is None else [(b, at) for b, at in marks.nonzero().tolist()]

    @property
    def groups(self) -> list[int]:
        """The groups for which sums are kept separately."""
        return sorted(self.parts.keys() - {ALL})

    def without(self, group: int) -> Sums:
        """Return the sums over all minibatches except those of one group."""
        seen = self.seen.clone()
        seen[group::GROUPS] = 0
        rest = {key: part for key, part in self.parts.items() if key != group}
        return Sums(seen, rest, self.axes, self.kept)

    @classmethod
    def zero(cls, minibatches: int) -> Sums:
        """Return empty sums for a plan of this many minibatches."""
        return cls(seen=torch.zeros(minibatches, dtype=torch.int64))

    @classmethod
    def of(
        cls,
        index: int,
        minibatches: int,
        terms: Mapping[str, Tensor],
        axes: dict[str, list[str]],
        grouped: Callable[[str], bool] = lambda name: True,
        kept: tuple[str, ...] = (),
    ) -> Sums:
        """Return the contribution of one minibatch.

        grouped: whether a term is summed per group. kept: prefixes of the names of terms that are not summed.
        """
        one = cls.zero(minibatches)
        one.seen[index] = 1
        for name, term in terms.items():
            if name.startswith(kept):
                one.kept.setdefault(index, {})[name] = term.cpu()
                continue
            group = index % GROUPS if grouped(name) else ALL
            one.parts.setdefault(group, {})[name] = term.double()
        return cls(one.seen, one.parts, axes, one.kept)

    @property
    def names(self) -> set[str]:
        return {name for part in (*self.parts.values(), *self.kept.values()) for name in part}

    def __add__(self, more: Sums) -> Sums:
        if not self.names or not more.names:  # zero is the neutral element
            some = self if self.names else more
            return Sums(self.seen + more.seen, some.parts, some.axes, some.kept)
        if self.axes != more.axes or (self.names ^ more.names) - {SKIPPED}:
            raise ValueError(
                "these sums measure different things and cannot be added:\n"
                f"  {sorted(self.names)} over {self.axes}\n  {sorted(more.names)} over {more.axes}"
            )
        both = self.parts.keys() | more.parts.keys()
        parts = {g: _added(self.parts.get(g, {}), more.parts.get(g, {})) for g in sorted(both)}
        kept = {**self.kept, **more.kept}  # `seen` shows whether both have the same minibatch
        return Sums(self.seen + more.seen, parts, self.axes, kept)

    def complete(self) -> Sums:
        """Return the sums if they contain every minibatch exactly once. Raises Incomplete otherwise."""
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
        """Return the sums with their terms on the device (on the CPU for MPS, which has no float64)."""
        where = torch.device("cpu") if device.type == "mps" else device
        return Sums(self.seen, self._moved(where), self.axes, self.kept)

    def _moved(self, device: torch.device) -> dict[int, Terms]:
        return {
            group: {name: term.to(device) for name, term in part.items()}
            for group, part in self.parts.items()
        }

    def packed(self, owner: str = "") -> bytes:
        """Return the sums as bytes with a checksum, for `load`. owner: fingerprint of the experiment and pass."""
        buffer = io.BytesIO()
        parts = self._moved(torch.device("cpu"))
        stored = {"owner": owner, "seen": self.seen, "parts": parts, "axes": self.axes}
        torch.save(stored | ({"kept": self.kept} if self.kept else {}), buffer)
        content = buffer.getvalue()
        return HEAD + hashlib.sha256(content).digest() + content

    @classmethod
    def load(cls, path: Path, owner: str | None = None) -> Sums:
        """Return the sums in a file that `packed` wrote, without running any code in the file.

        owner: the fingerprint that the file must carry; None accepts any. Raises Damaged if a byte of the
        file has changed, or if it belongs to another owner.
        """
        packed = path.read_bytes()
        checked = len(HEAD) + hashlib.sha256().digest_size
        content = memoryview(packed)[checked:]
        if packed.startswith(HEAD[:12]) and not packed.startswith(HEAD):
            raise Damaged("it was written by a different version of vitsee")
        if packed[:checked] != HEAD + hashlib.sha256(content).digest():
            raise Damaged("it is truncated or corrupt: its checksum is wrong")
        try:
            stored = torch.load(io.BytesIO(content), weights_only=True)
            whose = stored.pop("owner")
            sums = cls(**stored)
            assert sums.seen.dtype is torch.int64
            assert sums.seen.ndim == 1
        except Exception as error:  # the checksum is right, so another program wrote it
            raise Damaged("it does not hold sums of this version of vitsee") from error
        if owner not in (None, whose):
            raise Damaged(
                "it belongs to a different experiment or a different version of the analysis"
            )
        return sums


def _added(some: Terms, more: Terms) -> Terms:
    """Return the sums of both by name. A missing term counts as 0."""
    both = {name: term + more[name].to(term.device) for name, term in some.items() if name in more}
    return {**some, **more, **both}


def _few(numbers: list[int]) -> str:
    return f"[{', '.join(map(str, numbers[:5]))}{', …' if len(numbers) > 5 else ''}]"
