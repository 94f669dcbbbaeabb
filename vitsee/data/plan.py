"""Assigns images to minibatches, depending only on the experiment, so that all machines agree."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from vitsee.errors import UserError


@dataclass(frozen=True)
class Plan:
    """`images` of `size` images, drawn without replacement and cut into minibatches, `repeats` times.

    Each repeat draws and shuffles again. equal: drop a smaller last minibatch. chosen: use these images in
    this order instead of drawing.
    """

    size: int
    images: int
    batch_size: int
    seed: int
    repeats: int = 1
    equal: bool = True
    chosen: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed must be at least 0, got {self.seed}")

    @property
    def per_repeat(self) -> int:
        """Number of minibatches per repeat."""
        full, rest = divmod(self.images, self.batch_size)
        return full if self.equal else full + (rest > 0)

    @property
    def left_out(self) -> int:
        """Number of images per repeat that are dropped because they do not fill a minibatch."""
        return self.images % self.batch_size if self.equal else 0

    @property
    def planned(self) -> int:
        """Number of images in all minibatches of all repeats."""
        return (self.images - self.left_out) * self.repeats

    def __len__(self) -> int:
        return self.per_repeat * self.repeats

    def batch(self, index: int) -> list[int]:
        """Return the data set indices of one minibatch."""
        repeat, within = divmod(index, self.per_repeat)
        start = within * self.batch_size
        end = min(start + self.batch_size, self.images)
        if self.chosen is not None:
            return list(self.chosen[start:end])
        return _order(self.size, self.seed, repeat)[start:end].tolist()

    def used(self, minibatches: int) -> list[int]:
        """Return the data set indices in the first minibatches, each once, in order of first use."""
        return list(dict.fromkeys(i for b in range(minibatches) for i in self.batch(b)))

    def positions(self, index: int, ids: list[int]) -> list[int]:
        """Return the positions of these images of minibatch `index` among all planned images."""
        repeat, within = divmod(index, self.per_repeat)
        start = repeat * (self.images - self.left_out) + within * self.batch_size
        place = {image: start + i for i, image in enumerate(self.batch(index))}
        return [place[image] for image in ids]

    def fresh(self, index: int) -> float:
        """Return the share of a minibatch's images that no earlier minibatch contains."""
        repeat = index // self.per_repeat
        if repeat == 0:
            return 1.0
        batch = self.batch(index)
        return 1 - _drawn_before(self, repeat)[batch].mean().item()

    def todo(self, seen: Tensor, shard: int, shards: int) -> list[int]:
        """Return the minibatches of this shard that are not yet counted in `seen`."""
        return [b for b in range(shard, len(self), shards) if not seen[b]]


@lru_cache(maxsize=2)
def _drawn_before(plan: Plan, repeat: int) -> np.ndarray:
    """Return whether each image is in a minibatch of an earlier repeat, (size,) bool."""
    drawn = np.zeros(plan.size, bool)
    for before in range(repeat):
        drawn[_order(plan.size, plan.seed, before)[: plan.images - plan.left_out]] = True
    return drawn


@lru_cache(maxsize=2)
def _order(size: int, seed: int, repeat: int) -> np.ndarray:
    return np.random.default_rng([seed, repeat]).permutation(size)
