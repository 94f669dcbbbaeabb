"""The interface of data sets, its implementations in memory, and the option `images_list` that chooses images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from PIL import Image

from vitsee.errors import UserError, nearest


class Images(ABC):
    """Images in a fixed order, each with an id and a label.

    classes: class names in the order of the labels. fingerprint: changes when the set of images changes.
    """

    classes: list[str]
    fingerprint: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def id(self, index: int) -> str:
        """Return a name that is the same on all machines."""

    @abstractmethod
    def label(self, index: int) -> int:
        """Return an index into `classes`."""

    @abstractmethod
    def open(self, index: int) -> Image.Image:
        """Return the decoded RGB image. EXIF orientation is not applied, as in common evaluation code.

        Raises the decoder's own errors, and OSError with an `errno` if the system cannot read the file.
        """

    def changed_since(self, moment: float) -> list[str]:
        """Return the image files, or the tar, written after this time (in seconds since 1970)."""
        return []


def require_listed(option: Any) -> None:
    """Raise UserError unless the option `images_list` is a list of image numbers or ids, or null."""
    if option is not None and (not isinstance(option, list) or not option):
        raise UserError(
            f"analysis.images_list must be a list of image numbers or ids, e.g. [0,7]; got {option!r}"
        )


def listed(images: Images, entries: list[Any] | None) -> list[int] | None:
    """Return the indices of the images of `images_list`, None for null. Raises UserError if one does not exist."""
    if entries is None:
        return None
    numbers = {images.id(i): i for i in range(len(images))}
    chosen = [_number(one, numbers) for one in entries]
    for one in chosen:
        if chosen.count(one) > 1:
            raise UserError(
                f"analysis.images_list has image {one} ({images.id(one)}) more than once; list it once"
            )
    return chosen


def _number(entry: Any, numbers: dict[str, int]) -> int:
    if isinstance(entry, int) and 0 <= entry < len(numbers):
        return entry
    if str(entry) in numbers:
        return numbers[str(entry)]
    raise UserError(
        f"analysis.images_list: no image {entry}; the {len(numbers)} images go from 0 "
        f"({next(iter(numbers))}) to {len(numbers) - 1}.{nearest(str(entry), numbers)}"
    )


def unreadable(name: str, error: OSError) -> UserError:
    """Return the error for a read failure outside the image."""
    return UserError(
        f"cannot read image {name} ({error.strerror or error}): the system failed, not the image, or the file "
        f"was moved. Once the file can be read again, the same command resumes"
    )


class Arrays(Images):
    """Images that torchvision keeps in memory (CIFAR)."""

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


class Generated(Images):
    """Procedurally generated images (scenes)."""

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
