"""Procedurally generated images, cached in a file so that each is generated once."""

from __future__ import annotations

import hashlib
import io
import logging
import math
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from vitsee.data.images import Generated, Images
from vitsee.data.minibatches import cores
from vitsee.errors import UserError, unwritable
from vitsee.io import writing
from vitsee.options import RunOptions

log = logging.getLogger(__name__)

FEW = 2000
"""Up to this many images are generated without extra processes."""
PIECE = 2**24
"""Number of bytes read at a time to compute a checksum."""


def in_cache(images: Images, cache: Path, run: RunOptions) -> Images:
    """Return the images; procedurally generated ones are generated once, in parallel, into the cache folder.

    Raises UserError if the folder cannot be written, the disk is full, or a process is killed.
    """
    if not isinstance(images, Generated):
        return images
    cached = CachedImages(
        images, cache / f"{images.fingerprint.replace('/', '-')}-{len(images)}.npy"
    )
    try:
        cache.mkdir(parents=True, exist_ok=True)
        writing.clear(cache)
        if cached.path.exists() and not cached.intact():
            log.warning("warning: %s is damaged; generating it again", cached.path)
            cached.path.unlink(missing_ok=True)
        if not cached.path.exists():
            _generate(cached, run)
    except OSError as error:
        raise unwritable(cached.path, error) from error
    except BrokenProcessPool as error:
        raise UserError(
            "a process that generates images died, usually out of memory; "
            "repeat the command with fewer processes, such as run.workers=1"
        ) from error
    return cached


def _generate(images: CachedImages, run: RunOptions) -> None:
    """Generate the images into their file, atomically."""
    count, path = len(images), images.path
    with ExitStack() as stack:
        partial = stack.enter_context(writing.whole(path))
        file = stack.enter_context(open(partial, "wb"))
        made: Iterable[np.ndarray] = map(images.scenes.image, range(count))
        if count > FEW:
            pool = ProcessPoolExecutor(run.workers or cores(), get_context("spawn"))
            stack.callback(pool.shutdown, cancel_futures=True)
            made = pool.map(images.scenes.image, range(count), chunksize=256)
        bar = tqdm(made, f"generating {path.stem}", count, disable=not run.progress, unit="image")
        file.write(images.head)
        digest = hashlib.sha256(images.head)
        for image in bar:
            file.write(image.data)
            digest.update(image.data)
        file.write(digest.digest())


class CachedImages(Generated):
    """Generated images cached in a .npy file, (N, H, W, 3) uint8, followed by a SHA-256 of the file.

    Images are read one by one, because a read error in a memory-mapped file would kill the process.
    """

    def __init__(self, made: Generated, path: Path) -> None:
        super().__init__(made.scenes, made.classes, made.name)
        self.path, side = path, made.scenes.resolution
        self.shape = (side, side, 3)
        head = io.BytesIO()
        whole = {"descr": "|u1", "fortran_order": False, "shape": (len(made), *self.shape)}
        np.lib.format.write_array_header_1_0(head, whole)
        self.head = head.getvalue()

    def intact(self) -> bool:
        """Return whether the file's checksum is correct."""
        left = len(self.head) + len(self) * math.prod(self.shape)
        if self.path.stat().st_size != left + hashlib.sha256().digest_size:
            return False
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while part := file.read(min(left, PIECE)):
                digest.update(part)
                left -= len(part)
            return file.read() == digest.digest()

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        """Return (N, H, W, 3) uint8."""
        size = math.prod(self.shape)
        whole = np.empty((len(indices), *self.shape), np.uint8)
        with open(self.path, "rb") as file:
            for place, index in zip(whole, indices.tolist(), strict=True):
                file.seek(len(self.head) + index * size)
                file.readinto(place.data)
        return whole

    def open(self, index: int) -> Image.Image:
        size = math.prod(self.shape)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(len(self.head) + index * size)
            pixels = np.frombuffer(file.read(size), np.uint8)
        return Image.fromarray(pixels.reshape(self.shape))
