"""Images of an object from Python: a torch Dataset, a Hugging Face Dataset, or a list."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from vitsee import given
from vitsee.data.images import Images
from vitsee.data.rgb import rgb
from vitsee.errors import UserError, unknown
from vitsee.options import DatasetOptions

log = logging.getLogger(__name__)

SAMPLE = 1000
"""Largest number of images, spread over the data set, whose pixels and labels enter the digest."""
TRIED = 8
"""Number of images, spread over the data set, that are read again to find random augmentation."""
LABELS = ("label", "labels", "fine_label", "target", "class")
"""Names of labels in items that are mappings."""


def from_python(dataset: DatasetOptions, resolution: int) -> Images:
    """Return the images that were passed to `vitsee.run_experiment`. Raises UserError if they cannot be read."""
    source, split = given.what_is("dataset"), dataset.split
    if isinstance(source, Mapping):
        if split is None and len(source) == 1:
            split = next(iter(source))
        if split not in source:
            raise unknown(
                f"the data set given from Python has no dataset.split={split}",
                str(split),
                source,
                "it has",
            )
        return Given(source[split], f"{dataset.name}/{split}")
    if split is not None:
        raise UserError(
            f"dataset.split={split}: a data set from Python has splits only as a mapping, such as "
            f"dataset={{'train': …, 'test': …}}; leave it out (linear_probe: analysis.train_split=null)"
        )
    return Given(source, dataset.name)


class Given(Images):
    """An object with a length that can be indexed; items are images, (image, label), or mappings with both.

    An image is a PIL image, (H, W, 3) or (H, W) uint8, or a (C, H, W) tensor: uint8, or floats from 0 to 1, which are
    rounded to 8 bits. Raises UserError for an object without a length or order, or one that returns a different
    image each time.
    """

    def __init__(self, source: Any, name: str) -> None:
        if isinstance(source, DataLoader):
            source = source.dataset
        kind = type(source).__name__
        readable = hasattr(source, "__len__") and hasattr(source, "__getitem__")
        if isinstance(source, (IterableDataset, Mapping, str, bytes)) or not readable:
            raise UserError(
                f"a data set needs a length and images by index, like a torch Dataset or a list, but "
                f"this {kind} lacks them; turn a stream into a list with list(stream), or use dataset=webdataset"
            )
        if len(source) == 0:
            raise UserError(f"the data set given from Python ({kind}) is empty")
        self.source, self.name = _undecoded(source), name
        self._last: tuple[int, Any] = (-1, None)
        for index in np.linspace(0, len(source) - 1, min(TRIED, len(source)), dtype=int).tolist():
            what = "the first image of the data set" if index == 0 else self.id(index)
            try:
                images = {self._read(index, what)[0].tobytes() for _ in range(3)}
            except UserError:
                if index == 0:
                    raise
                continue  # a bad image, dealt with when it is used
            if len(images) == 1:
                continue
            raise UserError(
                f"the data set given from Python ({kind}) returns a different image each time: leave out its random "
                f"augmentation"
            )

    @cached_property
    def classes(self) -> list[str]:  # type: ignore[override]  # read on demand
        there = None if self._relabelled else getattr(self.source, "classes", None)
        if (column := self._column) is not None:  # of a Hugging Face Dataset
            there = getattr(self.source.features[column], "names", None)
        if isinstance(there, (list, tuple)) and all(isinstance(one, str) for one in there):
            return list(there)
        return [str(i) for i in range(max(map(self.label, range(len(self)))) + 1)]

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """SHA-256 of the length, and of the pixels and labels of up to `SAMPLE` images."""
        digest = hashlib.sha256(str(len(self)).encode())
        for index in range(0, len(self), -(-len(self) // SAMPLE)):
            try:
                image, label = self._read(index, self.id(index))
            except UserError:
                digest.update(b"\0")  # a bad image, dealt with when it is used
                continue
            digest.update(f"{image.size} {label}\n".encode() + image.tobytes())
        return f"python/{digest.hexdigest()}"

    def __len__(self) -> int:
        return len(self.source)

    def id(self, index: int) -> str:
        return f"{self.name}/{index:06d}"

    def label(self, index: int) -> int:
        listed = self._listed
        return int(listed[index]) if listed is not None else image_and_label(self._item(index))[1]

    def open(self, index: int) -> Image.Image:
        return as_image(image_and_label(self._item(index))[0])

    @cached_property
    def _listed(self) -> Any:
        """The labels of all images if they are available without decoding images, else None."""
        if (column := self._column) is not None:
            return list(self.source[column])
        listed = getattr(self.source, "targets", None)  # of torchvision's data sets
        if self._relabelled or listed is None or len(listed) != len(self):
            return None
        return listed

    @property
    def _relabelled(self) -> bool:
        """Whether the items have other labels than the data set lists: a `target_transform` changes them."""
        return any(
            getattr(of, "target_transform", None) is not None
            for of in (self.source, getattr(self.source, "transforms", None))
        )

    @property
    def _column(self) -> str | None:
        """The name of the labels in a Hugging Face Dataset; None for others, and without labels."""
        features = getattr(self.source, "features", None)
        return (
            next((name for name in LABELS if name in features), None)
            if isinstance(features, Mapping)
            else None
        )

    def _item(self, index: int) -> Any:
        """Return an item; the last one is cached, because its image and its label are requested separately."""
        if self._last[0] != index:
            self._last = index, self.source[index]
        return self._last[1]

    def _read(self, index: int, what: str) -> tuple[Image.Image, int]:
        """Return an image and its label. Raises UserError if the item is nothing that a data set may return."""
        try:
            image, label = image_and_label(self.source[index])
            return as_image(image), label
        except Exception as error:
            words = " ".join(str(error).split())
            raise UserError(f"{what} cannot be read ({type(error).__name__}: {words})") from error


def image_and_label(item: Any) -> tuple[Any, int]:
    """Return the image and the label of an item; 0 for an item without a label.

    Raises ValueError for a mapping without an image.
    """
    if isinstance(item, Mapping):
        images = (one for one in map(_opened, item.values()) if _is_image(one))
        if (image := next(images, None)) is None:
            raise ValueError(f"none of {', '.join(map(str, item))} is an image")
        labels = [item[name] for name in LABELS if item.get(name) is not None]
        return image, int(labels[0]) if labels else 0
    if isinstance(item, (tuple, list)):
        return item[0], int(item[1]) if len(item) > 1 and np.ndim(item[1]) == 0 else 0
    return item, 0


def _is_image(value: Any) -> bool:
    return isinstance(value, (Image.Image, Tensor, np.ndarray)) and getattr(value, "ndim", 3) >= 2


def _undecoded(source: Any) -> Any:
    """Return a Hugging Face Dataset whose images are given as files, so that they are decoded like all others.

    The library would turn them by their EXIF orientation. Columns with a mode of their own stay decoded.
    """
    features = getattr(source, "features", None)
    if not isinstance(features, Mapping) or getattr(source, "format", {}).get("type") is not None:
        return source
    for name, feature in features.items():
        plain = getattr(feature, "decode", False) and getattr(feature, "mode", None) is None
        if type(feature).__name__ == "Image" and plain:
            source = source.cast_column(name, type(feature)(decode=False))
    return source


def _opened(value: Any) -> Any:
    """Return the image of a file that a Hugging Face Dataset gives as its path or content; other values as they are."""
    if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
        content = value["bytes"]
        return Image.open(value["path"] if content is None else io.BytesIO(content))
    return value


def as_image(thing: Any) -> Image.Image:
    """Return a PIL image, array or tensor as an 8-bit RGB image. Raises ValueError if it cannot be one."""
    if isinstance(thing, Image.Image):
        # rgb drops the transparency in place, and this image belongs to the caller
        return rgb(thing.copy() if "transparency" in thing.info else thing)
    if isinstance(thing, np.ndarray) and thing.dtype == np.uint8 and thing.ndim in (2, 3):
        return rgb(Image.fromarray(thing))
    if not isinstance(thing, Tensor):
        raise ValueError(
            f"a {type(thing).__name__} is not a PIL image, a uint8 array (H, W, 3), or a tensor (C, H, W)"
        )
    pixels = thing.detach().cpu()
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or len(pixels) not in (1, 3):
        raise ValueError(
            f"a tensor of {tuple(pixels.shape)} is not an image (3, H, W) or (1, H, W)"
        )
    if pixels.is_floating_point():
        low, high = (float(x) for x in pixels.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"its values range from {low:g} to {high:g}, so it is already normalised: give images as uint8, or as "
                f"floats from 0 to 1, and leave Normalize to the model (vitsee.Model(…, mean=…, std=…))"
            )
        pixels = (pixels * 255).round().to(torch.uint8)
    elif pixels.dtype != torch.uint8:
        raise ValueError(
            f"a tensor of {pixels.dtype} is not an image: give uint8, or floats from 0 to 1"
        )
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
