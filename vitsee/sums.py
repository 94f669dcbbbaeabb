"""The only state an analysis keeps: named sums, and which minibatches are in them.

Everything an analysis measures is a sum over minibatches, so two partial results combine by `+`.
Resuming, splitting over GPUs and submitting a SLURM array are therefore one operation, and `seen`
(itself a sum) says exactly which minibatches a result covers.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vitsee.errors import Incomplete

HEAD = b"vitsee sums 1\n"
"""How a file of sums begins; then come the SHA-256 of the rest, and the rest."""


class Damaged(Exception):
    """A file of sums is not as it was written."""


@dataclass
class Sums:
    """Named float64 tensors summed over minibatches.

    seen: (minibatches,) int64, how often each minibatch of the plan was added; 1 everywhere at the end.
    terms: the sums, by name; they stay on the device of the first ones added.
    axes: what the positions along an axis are called, e.g. {"model": ["blocks.0", "blocks.1"]}.
    """

    seen: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    axes: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def zero(cls, minibatches: int) -> Sums:
        """Nothing measured yet of a plan of so many minibatches."""
        return cls(seen=torch.zeros(minibatches, dtype=torch.int64))

    @classmethod
    def of(
        cls, index: int, minibatches: int, terms: Mapping[str, Tensor], axes: dict[str, list[str]]
    ) -> Sums:
        """The contribution of one minibatch."""
        one = cls.zero(minibatches)
        one.seen[index] = 1
        return cls(one.seen, {name: term.double() for name, term in terms.items()}, axes)

    def __add__(self, more: Sums) -> Sums:
        if not self.terms or not more.terms:  # zero is the neutral element
            some = self if self.terms else more
            return Sums(self.seen + more.seen, some.terms, some.axes)
        if self.axes != more.axes or self.terms.keys() != more.terms.keys():
            raise ValueError(
                "these sums measure different things and cannot be added:\n"
                f"  {sorted(self.terms)} over {self.axes}\n  {sorted(more.terms)} over {more.axes}"
            )
        terms = {name: term + more.terms[name].to(term.device) for name, term in self.terms.items()}
        return Sums(self.seen + more.seen, terms, self.axes)

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
        terms = {name: term.to(where) for name, term in self.terms.items()}
        return Sums(self.seen, terms, self.axes)

    def packed(self) -> bytes:
        """Plain tensors on the CPU and lists, with their checksum, for `load`."""
        buffer = io.BytesIO()
        terms = {name: term.cpu() for name, term in self.terms.items()}
        torch.save({"seen": self.seen, "terms": terms, "axes": self.axes}, buffer)
        content = buffer.getvalue()
        return HEAD + hashlib.sha256(content).digest() + content

    @classmethod
    def load(cls, path: Path) -> Sums:
        """What `packed` made; no code in the file is run. Raises Damaged if a byte of it has changed."""
        packed = path.read_bytes()
        checked = len(HEAD) + hashlib.sha256().digest_size
        content = memoryview(packed)[checked:]
        if packed[:checked] != HEAD + hashlib.sha256(content).digest():
            raise Damaged("it is cut off or changed: its checksum is wrong")
        try:
            sums = cls(**torch.load(io.BytesIO(content), weights_only=True))
            assert sums.seen.dtype is torch.int64
            assert sums.seen.ndim == 1
        except Exception as error:  # its checksum is right, so somebody else wrote it
            raise Damaged("it holds no sums of this version of vitsee") from error
        return sums


def _few(numbers: list[int]) -> str:
    return f"[{', '.join(map(str, numbers[:5]))}{', …' if len(numbers) > 5 else ''}]"
