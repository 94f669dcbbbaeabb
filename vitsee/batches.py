"""Which images make up which minibatch: a pure function of the experiment, so that any machine agrees."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from vitsee.errors import UserError


@dataclass(frozen=True)
class Plan:
    """`images` of `size` images, drawn without replacement and cut into full minibatches, `repeats` times.

    Each repeat draws and shuffles anew. A last partial minibatch is left out.
    """

    size: int
    images: int
    batch_size: int
    seed: int
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed must be at least 0, got {self.seed}")

    @property
    def per_repeat(self) -> int:
        """Minibatches in a repeat."""
        return self.images // self.batch_size

    @property
    def left_out(self) -> int:
        """Images of each repeat that do not fill a minibatch."""
        return self.images % self.batch_size

    def __len__(self) -> int:
        return self.per_repeat * self.repeats

    def batch(self, index: int) -> list[int]:
        """Data set indices of one minibatch."""
        repeat, within = divmod(index, self.per_repeat)
        start = within * self.batch_size
        return _order(self.size, self.seed, repeat)[start : start + self.batch_size].tolist()

    def todo(self, seen: Tensor, shard: int, shards: int) -> list[int]:
        """Minibatches of this shard that `seen` does not count yet."""
        return [b for b in range(shard, len(self), shards) if not seen[b]]


@lru_cache(maxsize=2)
def _order(size: int, seed: int, repeat: int) -> np.ndarray:
    return np.random.default_rng([seed, repeat]).permutation(size)
