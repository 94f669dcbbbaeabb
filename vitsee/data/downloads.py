"""Imagenette and CIFAR, downloaded once and verified."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitsee.data.image_files import in_folder
from vitsee.data.images import Arrays, Images
from vitsee.errors import UserError, expanded, unknown
from vitsee.io import writing
from vitsee.io.fetching import fetch
from vitsee.io.reachable import require
from vitsee.options import DatasetOptions


def imagenette(dataset: DatasetOptions, resolution: int) -> Images:
    from torchvision.datasets import Imagenette

    split = split_of(dataset, ("train", "val"), "val")
    root = cache_of(dataset)
    unpacked = root / "imagenette2-320"
    if not (unpacked / split).is_dir():
        if unpacked.exists():
            raise UserError(
                f"{unpacked} has no folder {split!r}: remove it, and it will be unpacked again"
            )
        url, md5 = Imagenette._ARCHIVES["320px"]
        _download(dataset, url, md5, lambda: _unpack(root / Path(url).name, unpacked))
    return in_folder(unpacked / split)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the archive's only folder atomically: torchvision would take a partial folder for a complete one."""
    from torchvision.datasets.utils import extract_archive

    partial = writing.unfinished(folder)
    try:
        extract_archive(archive, partial)
        os.replace(partial / folder.name, folder)
    except OSError:
        if not folder.is_dir():  # else another process has unpacked it meanwhile
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def cifar(dataset: DatasetOptions, resolution: int) -> Images:
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset.kind]
    split = split_of(dataset, ("train", "test"), "test")
    root = cache_of(dataset)
    try:
        loaded = source(root, train=split == "train")
    except RuntimeError:  # missing or damaged

        def unpacked() -> Any:
            if not (root / source.base_folder).exists():
                _unpack(root / source.filename, root / source.base_folder)
            return source(root, train=split == "train", download=True)  # repairs damaged files

        loaded = _download(dataset, source.url, source.tgz_md5, unpacked)
    return Arrays(loaded, f"{dataset.kind}/{split}")


def at_home(path: Path) -> str:
    """Return the path with ~ for the home folder."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def _download(dataset: DatasetOptions, url: str, md5: str, unpack: Callable[[], Any]) -> Any:
    """Download the archive into the cache folder if needed, and return what `unpack` returns.

    A complete archive, downloaded earlier or copied by hand, needs no network. Raises a UserError that says
    what to do.
    """
    from torchvision.datasets.utils import check_integrity

    root = cache_of(dataset)
    archive = root / Path(url).name
    remedy = (
        f"download {url} on a machine with network access and copy it to {at_home(root)}, "
        f"or use dataset=scenes, or dataset=folder dataset.root=PATH"
    )
    fetched = check_integrity(archive, md5)
    if not fetched:
        require(url, f"dataset={dataset.name}", remedy)
    try:
        root.mkdir(parents=True, exist_ok=True)
        writing.clear(root)
        if not fetched:
            fetch(url, archive, md5, f"dataset={dataset.name}")
        return unpack()
    except (OSError, RuntimeError) as error:
        raise UserError(f"downloading dataset={dataset.name} failed ({error}); {remedy}") from error


def cache_of(dataset: DatasetOptions) -> Path:
    """Return the folder for downloads."""
    return expanded(dataset.root or "~/.cache/vitsee")


def split_of(dataset: DatasetOptions, available: tuple[str, ...], default: str) -> str:
    split = dataset.split or default
    if split not in available:
        raise unknown(
            f"dataset={dataset.name} has no dataset.split={split}", split, available, "it has"
        )
    return split
