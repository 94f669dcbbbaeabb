"""What a data set is: images in a fixed order, each with an id and a label."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from PIL import Image

from vitsee.errors import UserError


class Images(ABC):
    """Images by index.

    classes: names, in the order of the labels. fingerprint: changes when the set of images does.
    """

    classes: list[str]
    fingerprint: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def id(self, index: int) -> str:
        """A name that stays the same between machines."""

    @abstractmethod
    def label(self, index: int) -> int:
        """Index into `classes`."""

    @abstractmethod
    def open(self, index: int) -> Image.Image:
        """The decoded RGB image; raises whatever its decoder raises, and OSError with an `errno` if the
        system could not read the file.

        As in the field's evaluation code, an EXIF orientation is not applied.
        """

    def changed_since(self, moment: float) -> list[str]:
        """Files of images, or the one file of all, that were written after this moment, in seconds since 1970."""
        return []


def unreadable(name: str, error: OSError) -> UserError:
    """That the system failed to read an image, which is not the image's fault."""
    return UserError(
        f"cannot read image {name} ({error.strerror or error}): not the image but the system "
        f"failed, or the file was moved; when it can be read again the same command goes on"
    )


class Arrays(Images):
    """Images that torchvision holds in memory (CIFAR)."""

    def __init__(self, source: Any, name: str) -> None:
        self.source, self.name = source, name
        self.classes = source.classes
        self.fingerprint = f"{name}/{source.tgz_md5}"

    def __len__(self) -> int:
        return len(self.source.data)

    def id(self, index: int) -> str:
        return f"{self.name}/{index:05d}"

    def label(self, index: int) -> int:
        return self.source.targets[index]

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.source.data[index])


class Made(Images):
    """Images made by formula (scenes)."""

    def __init__(self, scenes: Any, classes: Iterable[str], name: str) -> None:
        self.scenes, self.classes, self.name = scenes, list(classes), name
        self.fingerprint = scenes.fingerprint

    def __len__(self) -> int:
        return len(self.scenes)

    def id(self, index: int) -> str:
        return f"{self.name}/{index:06d}"

    def label(self, index: int) -> int:
        return self.scenes.label(index)

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.scenes.image(index))
