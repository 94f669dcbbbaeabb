"""The images of each training step: selection, order, augmentation and loading."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from vitsee.data import datasets
from vitsee.data.images import Generated, Images
from vitsee.data.minibatches import (
    Transform,
    Undecodable,
    decoded,
    decoding,
    prepare_worker,
    transform_of,
    workers_for,
)
from vitsee.errors import UserError
from vitsee.options import RunOptions
from vitsee.training.image_cache import in_cache
from vitsee.training.ranks import Ranks
from vitsee.training.recipes import Recipe, Training

log = logging.getLogger(__name__)

EVALUATION_BATCH = 250
MIXED, SHIFTED = 1, 2
"""Streams of random numbers, in addition to the one for the order of images."""


@dataclass(frozen=True)
class Splits:
    """Training images and held-out images. chosen: indices of the training images in use."""

    train: Images
    test: Images
    chosen: np.ndarray

    @classmethod
    def of(cls, training: Training, resolution: int, cache: Path) -> Splits:
        """Load the training's splits. cache: folder for procedurally generated images.

        Raises UserError if the images are not available, or if training and held-out images are the same.
        """
        recipe, dataset = training.recipe, training.dataset
        asked = f"recipe.train_split={recipe.train_split}, dataset.split={dataset.split}"
        same = UserError(f"the held-out images are the training images ({asked}): use two splits")
        if recipe.train_split in (None, dataset.split):
            raise same
        train = datasets.load(replace(dataset, split=recipe.train_split), resolution, unsplit="")
        few = (
            replace(dataset, size=recipe.test_images)
            if dataset.kind in datasets.GENERATED
            else dataset
        )
        test = datasets.load(few, resolution)
        if train.fingerprint == test.fingerprint:
            raise same
        if train.classes != test.classes:
            strange = sorted({*train.classes} ^ {*test.classes})
            raise UserError(
                f"the two splits have different classes ({asked}): {len(strange)} are in only one of them, "
                f"e.g. {strange[0]}"
            )
        for images in (train, test):
            if -1 in getattr(images, "labels", ()):
                raise UserError(
                    f"some of the images have no label ({asked}); choose splits or a data set with labels"
                )
        order = np.random.default_rng([recipe.seed, len(train)]).permutation(len(train))
        chosen = order[: max(1, round(recipe.fraction * len(train)))]
        train, test = (in_cache(images, cache, training.run) for images in (train, test))
        return cls(train, test, chosen)

    def held_out(self, count: int | None) -> list[int]:
        """Return the indices of the held-out images that measure accuracy, the same for all trainings.

        Of images in folders some of each class are drawn, as their order is that of the classes; the classes of
        generated images take turns.
        """
        there = len(self.test)
        generated = isinstance(self.test, Generated)
        order = np.arange(there) if generated else np.random.default_rng(0).permutation(there)
        return order[: count or there].tolist()


@dataclass(frozen=True)
class Schedule:
    """The images of each step: every chosen image once per epoch, in an order that depends on the epoch.

    Iterating yields, for each step from `begin` on, the (epoch, index) pairs of this rank's share.
    """

    recipe: Recipe
    chosen: np.ndarray
    begin: int
    steps: int
    ranks: Ranks

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch, epoch_now, order = self.per_epoch, -1, self.chosen
        for step in range(self.begin, self.steps):
            epoch, within = divmod(step, per_epoch)
            if epoch != epoch_now:
                shuffle = np.random.default_rng([self.recipe.seed, epoch])
                epoch_now, order = epoch, shuffle.permutation(self.chosen)
            first = within * self.recipe.batch_size
            shown = order[first : first + self.recipe.batch_size]
            yield [(epoch, int(index)) for index in shown[self.ranks.rank :: self.ranks.count]]

    def __len__(self) -> int:
        return self.steps - self.begin

    @property
    def per_epoch(self) -> int:
        """Number of steps per epoch. Images that do not fill a step are dropped from that epoch."""
        count = len(self.chosen) // self.recipe.batch_size
        if count:
            return count
        raise UserError(
            f"there are {len(self.chosen)} training images (recipe.fraction={self.recipe.fraction:g}), "
            f"fewer than recipe.batch_size={self.recipe.batch_size}"
        )


@dataclass
class Augmented(TorchDataset):
    """Training images as the model sees them. Augmentation depends on (seed, epoch, index) alone."""

    images: Images
    transform: Transform
    seed: int

    def __getitem__(self, at: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = at
        with chance(self.seed, epoch, index):
            pixels = self.transform(_decoded(self.images, index))
        return pixels, self.images.label(index)


@dataclass
class _HeldOut(TorchDataset):
    """Held-out images as the model sees them."""

    images: Images
    transform: Transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(_decoded(self.images, index)), self.images.label(index)


def _decoded(images: Images, index: int) -> Image.Image:
    try:
        return decoded(images, index)
    except Undecodable as error:
        raise UserError(
            f"cannot decode image {images.id(index)} ({error}); fix or remove it"
        ) from error


@contextmanager
def chance(*seed: int) -> Iterator[None]:
    """Run the block with all random generators that timm's augmentation uses seeded."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    mixed = int(np.random.default_rng(seed).integers(2**32))
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def augmentation(recipe: Recipe, data: dict[str, Any]) -> Transform:
    """Return the transform of training images. Raises UserError for options that timm does not accept."""
    from timm.data import create_transform

    if recipe.augmentation is None:
        return transform_of(data)
    known = {key: data[key] for key in ("input_size", "interpolation", "mean", "std")}
    try:
        return create_transform(**known | recipe.augmentation, is_training=True)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"recipe.augmentation={recipe.augmentation}: {error}") from error


class Mixup:
    """Mixup and CutMix of the images of a minibatch, and targets with label smoothing.

    Image i is mixed with image N - 1 - i of the same process. Mixing depends on (seed, step) alone.
    """

    def __init__(self, recipe: Recipe, classes: int, ranks: Ranks | None = None) -> None:
        self.recipe, self.classes, self.ranks = recipe, classes, ranks or Ranks()

    def __call__(self, step: int, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed pixels and (N, classes) targets."""
        drawn = self.drawn(step, len(pixels), *pixels.shape[-2:])
        return self.mixed(pixels, labels, drawn.to(pixels.device))

    def drawn(self, step: int, count: int, rows: int, columns: int) -> Tensor:
        """Return how each image is mixed, (N, 5): share kept outside the cut; top, bottom, left, right of the cut.

        count: N, this process's images. It is drawn for the images of all processes.
        """
        recipe, count = self.recipe, count * self.ranks.count
        drawn = np.zeros((count, 5), np.float32)
        drawn[:, 0] = 1
        alphas = [alpha for alpha in (recipe.mixup, recipe.cutmix) if alpha]
        if alphas:
            rng = np.random.default_rng([recipe.seed, step, MIXED])
            mixed = rng.random(count) < recipe.mixed
            cut = mixed & (rng.random(count) < bool(recipe.cutmix) / len(alphas))
            blended = mixed & ~cut
            if recipe.mixup:
                drawn[blended, 0] = rng.beta(recipe.mixup, recipe.mixup, count)[blended]
            if recipe.cutmix:
                side = np.sqrt(rng.beta(recipe.cutmix, recipe.cutmix, count)) / 2
                middle = rng.random((2, count))
                size = np.array([[rows], [columns]])
                low = np.clip(np.rint((middle - side) * size), 0, size)
                high = np.clip(np.rint((middle + side) * size), 0, size)
                box = np.stack([low[0], high[0], low[1], high[1]], 1)
                drawn[cut, 1:] = box[cut]
        return torch.from_numpy(drawn[self.ranks.rank :: self.ranks.count].copy())

    def mixed(self, pixels: Tensor, labels: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed pixels and (N, classes) targets. drawn: as `drawn` returns, on the same device."""
        smooth, classes = self.recipe.label_smoothing, self.classes
        every = torch.arange(classes, device=labels.device)
        targets = (labels[:, None] == every) * (1 - smooth) + smooth / classes
        if not (self.recipe.mixup or self.recipe.cutmix):
            return pixels, targets
        rows, columns = (torch.arange(n, device=pixels.device) for n in pixels.shape[-2:])
        share, top, bottom, left, right = drawn.T[:, :, None]
        across = (rows >= top) & (rows < bottom)
        along = (columns >= left) & (columns < right)
        kept = (share[..., None] * ~(across[:, :, None] & along[:, None]))[:, None]
        share = kept.mean((2, 3))
        return (
            pixels * kept + pixels.flip(0) * (1 - kept),
            targets * share + targets.flip(0) * (1 - share),
        )


def to_train(
    splits: Splits, transform: Transform, schedule: Schedule, run: RunOptions, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pixels and labels of each step of the schedule."""
    loader = DataLoader(
        Augmented(splits.train, transform, schedule.recipe.seed),
        batch_sampler=schedule,
        num_workers=_workers(run, device),
        pin_memory=device.type == "cuda",
        worker_init_fn=prepare_worker,
        generator=torch.Generator(),  # so that the loader draws none of the model's random numbers
    )
    return _plainly(loader)


def to_test(
    splits: Splits,
    data: dict[str, Any],
    recipe: Recipe,
    run: RunOptions,
    device: torch.device,
    ranks: Ranks,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pixels and labels of this rank's share of the held-out images."""
    mine = splits.held_out(recipe.test_images)[ranks.rank :: ranks.count]
    loader = DataLoader(
        _HeldOut(splits.test, transform_of(data)),
        sampler=mine,
        batch_size=EVALUATION_BATCH,
        num_workers=_workers(run, device),
        worker_init_fn=prepare_worker,
        generator=torch.Generator(),
    )
    return _plainly(loader)


def _plainly(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield from the loader, and turn errors of worker processes into UserErrors."""
    with decoding():
        yield from loader


def _workers(run: RunOptions, device: torch.device) -> int:
    return workers_for(device) if run.workers is None else run.workers
