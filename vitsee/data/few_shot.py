"""Samples the training and held-out images of linear probes from labels, shots and seeds alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vitsee.errors import UserError

if TYPE_CHECKING:
    from vitsee.data.images import Images

HELD_OUT = 2**32 - 1
"""Seed of the held-out images: one draw for all seeds, disjoint from every training draw."""


@dataclass(frozen=True)
class ProbeImages:
    """Data set indices of the images that train the probes, and of the held-out images that choose the penalty.

    train: (seeds, n). held_out: ascending. labels: (len(union),), of the training images of any seed.
    """

    classes: list[str]
    train: np.ndarray
    held_out: np.ndarray
    labels: np.ndarray
    fingerprint: str

    @property
    def union(self) -> np.ndarray:
        """The training images of any seed, ascending."""
        return np.unique(self.train)

    @property
    def positions(self) -> np.ndarray:
        """Positions in the union of each seed's training images, (seeds, n)."""
        return np.searchsorted(self.union, self.train)

    def labels_of(self, classes: Sequence[str]) -> np.ndarray:
        """Return the training label of each of these classes. Raises UserError if one has no training images."""
        trained = {name: label for label, name in enumerate(self.classes)}
        untrained = [name for name in classes if name not in trained]
        if untrained:
            raise UserError(
                f"the test images have {len(untrained)} classes that the training images lack "
                f"(first: {untrained[0]!r}); the training images have {_few(self.classes)}"
            )
        return np.array([trained[name] for name in classes])

    def rest(self, count: int) -> np.ndarray:
        """Return all other images of a data set of `count`. Raises UserError if there are none."""
        used = np.union1d(self.union, self.held_out)
        rest = np.setdiff1d(np.arange(count), used)
        if not len(rest):
            raise UserError(
                f"no images are left to test on: all {count} are drawn; use fewer analysis.shots, "
                f"fewer analysis.seeds or a smaller analysis.held_out"
            )
        return rest


def sample(images: Images, shots: int, held_out: int | None, seeds: list[int]) -> ProbeImages:
    """Sample the training images of every seed, and the held-out images.

    With shots: `held_out` images per class (default: `shots`) are held out once, and every seed draws
    `shots` of the others. With shots=0: the last `held_out` images of each class are held out, and all
    others are for training. By default these are the last tenth of the images (the last 5,000 of CIFAR, as in
    Raghu et al. 2021), or of each class if the images are sorted by class. Raises UserError if a class has too
    few images, or if there are fewer than two classes.
    """
    labels = np.array([images.label(i) for i in range(len(images))])
    members = [np.flatnonzero(labels == k) for k in range(len(images.classes))]
    if len(members) < 2:
        raise UserError(
            f"a probe needs at least two classes, but all {len(images)} training images have "
            f"the same one ({images.classes[0]!r}); put the images of each class into a folder of its own"
        )
    apart = (
        [held_out or shots] * len(members) if held_out or shots else _last_tenth(labels, members)
    )
    for name, member, beside in zip(images.classes, members, apart, strict=True):
        _refuse_few(name, len(member), shots, beside, members)
    if shots:
        rng = np.random.default_rng(HELD_OUT)
        members = [rng.permutation(m) for m in members]
    held = np.concatenate([m[len(m) - a :] for m, a in zip(members, apart, strict=True)])
    pools = [m[: len(m) - a] for m, a in zip(members, apart, strict=True)]
    train = np.stack([_shots(pools, shots, seed) for seed in seeds])
    return ProbeImages(
        images.classes, train, np.sort(held), labels[np.unique(train)], images.fingerprint
    )


def _last_tenth(labels: np.ndarray, members: list[np.ndarray]) -> list[int]:
    """Return how many images of each class are in the last tenth; a tenth of each class if sorted by class."""
    if (np.diff(labels) != 0).sum() == sum(len(m) > 0 for m in members) - 1:  # class by class
        return [-(-len(m) // 10) for m in members]
    return [int((m >= len(labels) * 9 // 10).sum()) for m in members]


def _shots(pools: list[np.ndarray], shots: int, seed: int) -> np.ndarray:
    """Draw this many images from every pool, ascending; 0: all."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(pool)[:shots] if shots else pool for pool in pools]
    return np.sort(np.concatenate(drawn))


def _few(names: list[str]) -> str:
    return f"{', '.join(map(repr, names[:5]))}{', …' if len(names) > 5 else ''}"


def _refuse_few(
    name: str, available: int, shots: int, held_out: int, members: list[np.ndarray]
) -> None:
    needed = (shots or 1) + held_out
    if available >= needed:
        return
    few = sum(len(m) < needed for m in members)
    least = min(len(m) for m in members)
    fits = (
        f"analysis.shots={least // 2} or less, or a smaller analysis.held_out"
        if shots and least >= 2
        else "a training set with more images per class"
    )
    raise UserError(
        f"class {name!r} has {available} training images, but {needed} are needed ({shots or 1} to train, "
        f"{held_out} held out to choose the penalty); {few} of {len(members)} classes have too few. Use {fits}"
    )
