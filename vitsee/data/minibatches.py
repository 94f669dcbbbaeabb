"""Loads minibatches in a fixed order: worker processes decode, resize and crop, a few images at a time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from vitsee.data.images import Images, unreadable
from vitsee.data.plan import Plan
from vitsee.data.uploads import CudaUploads, Uploads, look_up
from vitsee.errors import Died, UserError
from vitsee.options import OnBadImage
from vitsee.parallel.interrupt import OF_SCHEDULERS, OF_TERMINALS

Transform = Callable[[Image.Image], Tensor]
Frame = Callable[[Image.Image], Any]
"""Resizes and crops an image, or is a model's own transform, which returns its (C, H, W) pixels."""
LABELS = "labels"


class Undecodable(Exception):
    """An image file cannot be decoded, and only the file is to blame. The message says why."""


def decoded(images: Images, index: int) -> Image.Image:
    """Return the decoded image. Raises Undecodable for any error of its decoder.

    Raises UserError for a system failure, which must not lead to skipped images: a lost file system, too
    many open files, no memory.
    """
    try:
        return images.open(index)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(
            f"not enough memory to decode image {images.id(index)}; try run.workers=0, or remove the image"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(images.id(index), error) from error
        if isinstance(error, UnidentifiedImageError):  # its message gives an object's address
            raise Undecodable("its content is not in a known image format") from error
        raise Undecodable(f"{type(error).__name__}: {error}") from error


@dataclass
class Minibatch:
    """One minibatch of the plan.

    index: its number in the plan. ids: data set indices of its N images. skipped: indices of images that
    could not be decoded. pixels: for each model's role, (N, 3, H, W) float32 after the model's transform.
    labels: (N,) int64.
    """

    index: int
    ids: list[int]
    skipped: list[int]
    pixels: dict[str, Tensor]
    labels: Tensor


PIECE = 16
"""Number of images that a worker decodes at a time, so that all workers share a minibatch."""
PIECES = 64
"""Largest number of pieces per minibatch: each takes a file descriptor while it waits for the others."""

Item = tuple[int, dict[str, Tensor] | None, int, Exception | None]
"""An image's index, its pixels by preprocessing, its label, and why it has no pixels."""


class Piece(NamedTuple):
    """A few images of a minibatch, decoded.

    ids: data set indices of its N images. pixels: by preprocessing, (N, H, W, 3) uint8, resized and cropped, or
    (N, C, H, W) float32 from a model's own transform.
    labels: one per image. bad: why the other images could not be decoded.
    """

    ids: list[int]
    pixels: dict[str, Tensor]
    labels: list[int]
    bad: dict[int, Exception]


@dataclass
class _Framed(TorchDataset):
    """Images resized and cropped: {preprocessing: pixels as in `Piece`}, or None with the reason."""

    images: Images
    frames: dict[str, Frame]

    def __getitem__(self, index: int) -> Item:
        try:
            image = decoded(self.images, index)
        except (Undecodable, UserError) as reason:
            return index, None, -1, reason
        pixels = {name: _as_tensor(frame(image)) for name, frame in self.frames.items()}
        return index, pixels, self.images.label(index), None


def _as_tensor(framed: Any) -> Tensor:
    return framed.float() if isinstance(framed, Tensor) else torch.from_numpy(np.array(framed))


def transform_of(data: dict[str, Any]) -> Transform:
    """Return a model's own evaluation transform, from timm's data configuration."""
    from timm.data import create_transform

    return create_transform(**data, is_training=False)


def in_two(transform: Any) -> tuple[Frame, Tensor]:
    """Split timm's evaluation transform into its resizing and cropping, and a table of the resulting values.

    The table is (3, 256) float32. ToTensor and Normalize, which come last, treat each value separately, so a
    table describes them completely, and images can stay at one byte per value until they are on the device.
    """
    *frame, to_tensor, normalise = transform.transforms
    every = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    return type(transform)(frame), normalise(to_tensor(Image.fromarray(every)))[:, 0]


class Minibatches:
    """Iterates over the minibatches `todo` of a plan. Each image is decoded once for all models.

    data: each role's data configuration (timm's `resolve_model_data_config`, or one with its own `transform`,
    which turns an image into the network's input). An image that cannot be decoded raises UserError, or is
    skipped for all models with `on_bad_image=skip`. Workers are at most two minibatches ahead, or two pieces each
    if that is more.
    """

    def __init__(
        self,
        images: Images,
        data: dict[str, dict[str, Any]],
        plan: Plan,
        todo: list[int],
        *,
        device: torch.device,
        workers: int | None,
        on_bad_image: OnBadImage,
    ) -> None:
        self.images, self.plan, self.todo, self.device = images, plan, todo, device
        self.on_bad_image = on_bad_image
        # Models with the same preprocessing share the transformed images.
        self.preprocessing = {role: _key(config) for role, config in data.items()}
        frames: dict[str, Frame] = {}
        self.values: dict[str, Tensor | None] = {}
        for role, name in self.preprocessing.items():
            own = data[role].get("transform")
            frames[name], values = (own, None) if own else in_two(transform_of(data[role]))
            self.values[name] = None if values is None else values.to(device)
        on_cuda = device.type == "cuda"
        self.uploads = CudaUploads(device) if on_cuda else Uploads()
        self.piece = max(PIECE, -(-plan.batch_size // PIECES))
        count = workers_for(device) if workers is None else workers
        ahead = max(2, -(-2 * plan.batch_size // (self.piece * count))) if count else None
        self.loader = DataLoader(
            _Framed(images, frames),
            batch_sampler=[piece for index in todo for piece in self._pieces(index)],
            num_workers=count,
            prefetch_factor=ahead,
            collate_fn=_collate,
            pin_memory=on_cuda,
            worker_init_fn=prepare_worker,
        )

    @property
    def waited(self) -> float:
        """Seconds that measuring has waited for minibatches, including the first."""
        return self.uploads.waited

    def __len__(self) -> int:
        return len(self.todo)

    def __iter__(self) -> Iterator[Minibatch]:
        pieces = iter(self.loader)
        for index in self.todo:
            yield self._next(index, pieces)
            self.uploads.submitted()

    def _next(self, index: int, loaded: Iterator[Piece]) -> Minibatch:
        """Return this minibatch, assembled from the next pieces."""
        with decoding():
            pieces = [next(loaded) for _ in self._pieces(index)]
        ids = [i for piece in pieces for i in piece.ids]
        bad = {i: reason for piece in pieces for i, reason in piece.bad.items()}
        self._judge(index, ids, bad)
        tensors = self.uploads.bring(partial(self._assembled, pieces, len(ids)))
        pixels = {role: tensors[name] for role, name in self.preprocessing.items()}
        return Minibatch(index, ids, list(bad), pixels, tensors[LABELS])

    def _pieces(self, index: int) -> list[list[int]]:
        """Return the indices of a minibatch's images, cut into pieces."""
        batch = self.plan.batch(index)
        return [batch[at : at + self.piece] for at in range(0, len(batch), self.piece)]

    def _judge(self, index: int, ids: list[int], bad: dict[int, Exception]) -> None:
        """Raise UserError if images could not be decoded and may not be skipped, or too few remain."""
        for reason in bad.values():
            if isinstance(reason, UserError):
                raise reason
        if bad and self.on_bad_image is OnBadImage.error:
            first, reason = next(iter(bad.items()))
            raise UserError(
                f"cannot decode image {self.images.id(first)} ({reason}); fix or remove it, or skip "
                f"such images with dataset.on_bad_image=skip"
            )
        needed = 4 if self.plan.equal else 1
        if len(ids) < needed:
            raise UserError(
                f"minibatch {index} has only {len(ids)} images that can be decoded, but needs at least {needed}; "
                f"{len(bad)} cannot be decoded, the first is {self.images.id(next(iter(bad)))}"
            )

    def _assembled(self, pieces: list[Piece], count: int) -> dict[str, Tensor]:
        """Return the labels and, by preprocessing, the pixels of a minibatch of `count` images."""
        there = [piece for piece in pieces if piece.ids]
        tensors = {
            LABELS: self._move(torch.tensor([label for piece in there for label in piece.labels]))
        }
        for name, values in self.values.items():
            if values is None:
                tensors[name] = torch.cat([self._move(piece.pixels[name]) for piece in there])
                continue
            height, width = there[0].pixels[name].shape[1:3]
            tensors[name] = values.new_empty(count, 3, height, width)
            at = 0
            for piece in there:
                into = tensors[name][at : at + len(piece.ids)]
                look_up(values, self._move(piece.pixels[name]), into)
                at += len(piece.ids)
        return tensors

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


def _key(config: dict[str, Any]) -> str:
    """Return a key that models with the same preprocessing share; a model's own transform is a key of its own."""
    return repr(sorted({**config, "transform": id(config.get("transform"))}.items()))


def _collate(items: list[Item]) -> Piece:
    """Stack the decoded images."""
    good = [(index, pixels, label) for index, pixels, label, _ in items if pixels is not None]
    bad = {index: reason for index, _, _, reason in items if reason is not None}
    names = good[0][1] if good else {}
    stacked = {name: torch.stack([pixels[name] for _, pixels, _ in good]) for name in names}
    return Piece([index for index, *_ in good], stacked, [label for *_, label in good], bad)


@contextmanager
def decoding() -> Iterator[None]:
    """Turn a UserError or the death of a process that decodes images into a UserError without its traceback."""
    with decoders_alive():
        try:
            yield
        except UserError as error:
            raise UserError(str(error).rpartition("vitsee.errors.UserError: ")[2].strip()) from None


@contextmanager
def decoders_alive() -> Iterator[None]:
    """Turn the death of a process that decodes images into Died; torch raises it wherever the block is."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise Died(
            f"a process that decodes images died ({str(error).splitlines()[0]}), usually out of memory "
            f"or out of space in /dev/shm; try run.workers=0 or a smaller batch_size"
        ) from error


CGROUP = Path("/sys/fs/cgroup")


def workers_for(device: torch.device, processes: int = 1) -> int:
    """Return the number of decoding processes per measuring process on this machine.

    On a CPU, the model needs cores too. On a GPU, decoding must keep up with the model.
    """
    share = cores() // processes
    return max(0, min(2, share - 1)) if device.type == "cpu" else max(1, min(16, share))


def cores() -> int:
    """Return how many cores this process may use, at most the container's quota."""
    there = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min([there, *_quotas()]))


def _quotas() -> list[int]:
    """Return the container's limits on cores, if it has any (cgroup, versions 2 and 1)."""
    shares = []
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((CGROUP / file).read_text() for file in files).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            shares.append(int(quota) // int(period))
    return shares


def prepare_worker(worker: int) -> None:
    """Set up a worker process: one thread, ignoring signals that the main process handles."""
    torch.set_num_threads(1)
    for number in (*OF_TERMINALS, *OF_SCHEDULERS):
        signal.signal(number, signal.SIG_IGN)
