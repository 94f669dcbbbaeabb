"""What each step of a training shows: which images, how they are changed, in which order."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from vitsee.data import datasets
from vitsee.data.images import Images, Made
from vitsee.data.minibatches import (
    Transform,
    Undecodable,
    decoded,
    decoding,
    prepare_worker,
    transform_of,
    workers_for,
)
from vitsee.errors import UserError, unwritable
from vitsee.io import writing
from vitsee.options import Run
from vitsee.training.ranks import Ranks
from vitsee.training.recipes import Recipe, Training

log = logging.getLogger(__name__)

EVALUATION_BATCH = 250
FEW = 2000
"""So many made images are not worth processes of their own."""
PIECE = 2**24
"""Bytes that are read at once to be checked."""


@dataclass(frozen=True)
class Splits:
    """Images to train on and held-out ones. chosen: indices of the training images that are shown."""

    train: Images
    test: Images
    chosen: np.ndarray

    @classmethod
    def of(cls, training: Training, resolution: int, cache: Path) -> Splits:
        """What the training names. cache: folder for images made by formula, which are made once.

        Raises UserError if the images cannot be had, or are the same for training and testing.
        """
        recipe, dataset = training.recipe, training.dataset
        asked = f"recipe.train_split={recipe.train_split}, dataset.split={dataset.split}"
        same = UserError(f"the held-out images are the training images ({asked}): name two splits")
        if recipe.train_split in (None, dataset.split):
            raise same
        train = datasets.load(replace(dataset, split=recipe.train_split), resolution)
        few = replace(dataset, size=recipe.test_images) if dataset.kind == "scenes" else dataset
        test = datasets.load(few, resolution)
        if train.fingerprint == test.fingerprint:
            raise same
        if train.classes != test.classes:
            strange = sorted({*train.classes} ^ {*test.classes})
            raise UserError(
                f"the two splits have not the same classes ({asked}): {len(strange)} are in one only, "
                f"as {strange[0]}"
            )
        order = np.random.default_rng([recipe.seed, len(train)]).permutation(len(train))
        chosen = order[: max(1, round(recipe.fraction * len(train)))]
        train, test = (kept(images, cache, training.run) for images in (train, test))
        return cls(train, test, chosen)

    def held_out(self, count: int | None) -> range:
        """Indices of the held-out images that accuracy is measured on."""
        return range(min(len(self.test), count or len(self.test)))


def kept(images: Images, cache: Path, run: Run) -> Images:
    """The images; those made by formula as a file in the cache folder, made in parallel once.

    Raises UserError if the folder cannot be written, the disk is full, or a process is killed.
    """
    if not isinstance(images, Made):
        return images
    found = Kept(images, cache / f"{images.fingerprint.replace('/', '-')}-{len(images)}.npy")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        writing.clear(cache)
        if found.path.exists() and not found.whole():
            log.warning("warning: %s is not as it was written: it is made again", found.path)
            found.path.unlink(missing_ok=True)
        if not found.path.exists():
            _make(found, run)
    except OSError as error:
        raise unwritable(found.path, error) from error
    except BrokenProcessPool as error:
        raise UserError(
            "a process that makes images died, most often for want of memory; the same command begins anew"
        ) from error
    return found


def _make(images: Kept, run: Run) -> None:
    """Write the file of the images, whole or not at all."""
    from tqdm import tqdm

    count, path = len(images), images.path
    with ExitStack() as stack:
        partial = stack.enter_context(writing.whole(path))
        file = stack.enter_context(open(partial, "wb"))
        made: Iterable[np.ndarray] = map(images.scenes.image, range(count))
        if count > FEW:
            pool = ProcessPoolExecutor(mp_context=get_context("spawn"))
            stack.callback(pool.shutdown, cancel_futures=True)
            made = pool.map(images.scenes.image, range(count), chunksize=256)
        bar = tqdm(made, f"making {path.stem}", count, disable=not run.progress, unit="image")
        file.write(images.head)
        digest = hashlib.sha256(images.head)
        for image in bar:
            file.write(image.data)
            digest.update(image.data)
        file.write(digest.digest())


class Kept(Made):
    """Images made by formula that lie in a .npy file, (N, H, W, 3) uint8; the SHA-256 of it is behind them.

    They are read one by one: a file that is mapped into memory kills the process where it cannot be read.
    """

    def __init__(self, made: Made, path: Path) -> None:
        super().__init__(made.scenes, made.classes, made.name)
        self.path, side = path, made.scenes.resolution
        self.shape = (side, side, 3)
        head = io.BytesIO()
        whole = {"descr": "|u1", "fortran_order": False, "shape": (len(made), *self.shape)}
        np.lib.format.write_array_header_1_0(head, whole)
        self.head = head.getvalue()

    def whole(self) -> bool:
        """Is every byte of the file as it was written?"""
        left = len(self.head) + len(self) * math.prod(self.shape)
        if self.path.stat().st_size != left + hashlib.sha256().digest_size:
            return False
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while part := file.read(min(left, PIECE)):
                digest.update(part)
                left -= len(part)
            return file.read() == digest.digest()

    def open(self, index: int) -> Image.Image:
        size = math.prod(self.shape)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(len(self.head) + index * size)
            pixels = np.frombuffer(file.read(size), np.uint8)
        return Image.fromarray(pixels.reshape(self.shape))


@dataclass(frozen=True)
class Schedule:
    """Which images a step shows: every one of them once an epoch, in an order of the epoch's own.

    Iterating gives, for each step from `begin` on, (epoch, index) of this rank's share of its images.
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
        """Steps of an epoch; images that do not fill one wait for the next epoch's order."""
        found = len(self.chosen) // self.recipe.batch_size
        if found:
            return found
        raise UserError(
            f"there are {len(self.chosen)} training images (recipe.fraction={self.recipe.fraction:g}), "
            f"fewer than recipe.batch_size={self.recipe.batch_size}"
        )


@dataclass
class Shown(TorchDataset):
    """Images as the model sees them in training; what chance does to one depends on (seed, epoch, index)."""

    images: Images
    transform: Transform
    seed: int

    def __getitem__(self, at: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = at
        with chance(self.seed, epoch, index):
            pixels = self.transform(_decoded(self.images, index))
        return pixels, self.images.label(index)


@dataclass
class _Tested(TorchDataset):
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
            f"cannot decode image {images.id(index)} ({error}); mend or remove it"
        ) from error


@contextmanager
def chance(*seed: int) -> Iterator[None]:
    """Within the block all of the generators that timm's augmentation draws from are seeded."""
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
    """What training images go through. Raises UserError for options that timm does not have."""
    from timm.data import create_transform

    if recipe.augmentation is None:
        return transform_of(data)
    known = {key: data[key] for key in ("input_size", "interpolation", "mean", "std")}
    try:
        return create_transform(**known | recipe.augmentation, is_training=True)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"recipe.augmentation={recipe.augmentation}: {error}") from error


class Mixer:
    """mixup and CutMix of a minibatch, and targets with label smoothing."""

    def __init__(self, recipe: Recipe, classes: int) -> None:
        from timm.data import Mixup

        self.recipe, self.classes = recipe, classes
        self.mix = None
        if recipe.mixup or recipe.cutmix:
            self.mix = Mixup(
                recipe.mixup,
                recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=classes,
            )

    def __call__(self, step: int, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels and (N, classes) targets; what chance does depends on (seed, step)."""
        if self.mix is None:
            smooth = self.recipe.label_smoothing
            targets = one_hot(labels, self.classes) * (1 - smooth) + smooth / self.classes
            return pixels, targets
        if len(pixels) % 2:
            raise UserError(
                f"mixup mixes pairs, but a GPU's share of recipe.batch_size={self.recipe.batch_size} "
                f"is {len(pixels)} images"
            )
        with chance(self.recipe.seed, step, self.classes):
            return self.mix(pixels, labels)


def to_train(
    splits: Splits, transform: Transform, schedule: Schedule, run: Run, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels and labels of each step of the schedule."""
    loader = DataLoader(
        Shown(splits.train, transform, schedule.recipe.seed),
        batch_sampler=schedule,
        num_workers=_workers(run, device),
        pin_memory=device.type == "cuda",
        worker_init_fn=prepare_worker,
        generator=torch.Generator(),  # the model's own random numbers are not to depend on loaders
    )
    return _plainly(loader)


def to_test(
    splits: Splits,
    data: dict[str, Any],
    recipe: Recipe,
    run: Run,
    device: torch.device,
    ranks: Ranks,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels and labels of this rank's share of the held-out images."""
    mine = splits.held_out(recipe.test_images)[ranks.rank :: ranks.count]
    loader = DataLoader(
        _Tested(splits.test, transform_of(data)),
        sampler=mine,
        batch_size=EVALUATION_BATCH,
        num_workers=_workers(run, device),
        worker_init_fn=prepare_worker,
        generator=torch.Generator(),
    )
    return _plainly(loader)


def _plainly(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """What the loader yields; errors of worker processes in the user's words."""
    with decoding():
        yield from loader


def _workers(run: Run, device: torch.device) -> int:
    return workers_for(device) if run.workers is None else run.workers
