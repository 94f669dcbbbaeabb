"""Loads data sets by their options. Images are decoded only when they are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from vitsee.data import contours, scenes
from vitsee.data.downloads import cifar, imagenette, split_of
from vitsee.data.given import from_python
from vitsee.data.hugging_face import streamed
from vitsee.data.image_files import Files, in_folder, tar_entries
from vitsee.data.images import Generated, Images
from vitsee.data.webdataset import shards
from vitsee.errors import UserError, expanded, nearest, unknown
from vitsee.options import DatasetOptions

SCENES = 10_240
"""Default number of generated images. They are generated on demand."""
GENERATED = ("contours", "lines", "scenes")
"""The kinds whose images are generated."""


class _NoFolder(UserError):
    """There is no folder of that split."""


def load(dataset: DatasetOptions, resolution: int, unsplit: str = "dataset.split=null") -> Images:
    """Return the images of a configured data set. resolution: side in pixels of generated images by default.

    unsplit: what to write, if anything, for images that are in no splits. Raises UserError if the data set is not
    available.
    """
    if dataset.kind not in KINDS:
        raise unknown(
            f"there is no dataset.kind={dataset.kind}", dataset.kind, KINDS, "dataset.kind can be"
        )
    for field in fields(dataset):
        readers, given = READERS.get(field.name), getattr(dataset, field.name)
        if readers and dataset.kind not in readers and given != field.default:
            raise UserError(
                f"dataset={dataset.name} does not read dataset.{field.name}={given}, which is for "
                f"dataset={' or '.join(readers)}: leave it out (dataset.{field.name}=null if a recipe or file sets "
                f"it), or choose that data set"
            )
    try:
        return KINDS[dataset.kind](dataset, resolution)
    except _NoFolder as error:
        advice = f" If its images are in no splits: {unsplit}" if unsplit else ""
        raise UserError(f"{error}{advice}") from error


def _scenes(dataset: DatasetOptions, resolution: int) -> Images:
    return _generated(dataset, resolution, scenes.Scenes, scenes.CLASSES)


def _contours(dataset: DatasetOptions, resolution: int) -> Images:
    return _generated(dataset, resolution, contours.Contours, contours.CLASSES)


def _lines(dataset: DatasetOptions, resolution: int) -> Images:
    lines = partial(contours.Contours, lines=True)
    return _generated(dataset, resolution, lines, contours.LINE_CLASSES)


def _generated(
    dataset: DatasetOptions, resolution: int, of: Callable[..., Any], classes: tuple[str, ...]
) -> Images:
    split = split_of(dataset, ("train", "test"), "test")
    side = resolution if dataset.resolution is None else dataset.resolution
    size = SCENES if dataset.size is None else dataset.size
    for option, value, least in (
        ("resolution", side, 1),
        ("size", size, 1),
        ("seed", dataset.seed, 0),
    ):
        if value < least:
            raise UserError(f"dataset.{option} must be at least {least}, got {value}")
    made = of(split=split, seed=dataset.seed, resolution=side, size=size)
    return Generated(made, classes, f"{dataset.kind}/{split}")


def _folder(dataset: DatasetOptions, resolution: int) -> Images:
    if not dataset.root:
        raise UserError(
            f"dataset={dataset.name} needs a folder or .tar of images: dataset.root=PATH"
            f" (or an environment variable, if `vitsee list datasets` shows one for it)"
        )
    root = expanded(dataset.root)
    if not root.exists():
        beside = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        raise UserError(f"dataset.root={root} does not exist.{nearest(root.name, beside)}")
    if root.is_dir():
        folders = {path.name for path in root.iterdir() if path.is_dir()}
        return in_folder(root / _part(dataset, root, folders))
    entries = tar_entries(root)
    part = _part(dataset, root, {e.name.split("/")[0] for e in entries if "/" in e.name})
    below = f"{part}/" if part else ""
    chosen = [
        replace(entry, name=entry.name.removeprefix(below))
        for entry in entries
        if entry.name.startswith(below)
    ]
    return Files(root, chosen, tar=True)


def _part(dataset: DatasetOptions, root: Path, folders: set[str]) -> str:
    """Return the split's folder below the root, or an empty string if the root itself is the split.

    The root is the split if it has the split's name, or if `split_is_root` and it has no folder of a different split.
    folders: names of the folders in the root.
    """
    split = dataset.split
    if split is None or split in folders:
        return split or ""
    if split in (root.name, root.stem):
        return ""
    if dataset.split_is_root and not folders & {"train", "val", "test"}:
        return ""
    absent = f"{root} has no folder {split!r}"
    if not folders:
        raise _NoFolder(f"{absent}, and no folders at all.")
    raise _NoFolder(unknown(absent, split, folders, "it has"))


READERS = {
    "root": ("folder", "imagenette", "cifar10", "cifar100", "hf", "webdataset"),
    "path": ("hf",),
    "config": ("hf",),
    "column": ("hf", "webdataset"),
    "take": ("hf",),
    "seed": (*GENERATED, "hf"),
    "resolution": GENERATED,
    "size": GENERATED,
}
"""The kinds that read an option; the others would silently ignore it."""

KINDS: dict[str, Callable[[DatasetOptions, int], Images]] = {
    "contours": _contours,
    "lines": _lines,
    "scenes": _scenes,
    "folder": _folder,
    "imagenette": imagenette,
    "cifar10": cifar,
    "cifar100": cifar,
    "hf": streamed,
    "webdataset": shards,
    "python": from_python,
}
