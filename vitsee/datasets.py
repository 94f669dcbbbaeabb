"""Data sets: images in a fixed order, each with an id and a label; nothing is decoded until asked for."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vitsee.config import Dataset
from vitsee.errors import UserError, nearest, unknown
from vitsee.network import require

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
SCENES = 10_240
"""How many scenes there are when nobody says; they are made when asked for."""


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
        """The decoded RGB image; raises what Pillow raises if it cannot be decoded.

        As in the field's evaluation code, an EXIF orientation is not applied.
        """


@dataclass(frozen=True)
class Entry:
    """One image file of a folder or tar: its path there, and where its bytes are in the tar."""

    name: str
    size: int
    offset: int = 0


class Files(Images):
    """Image files of a folder or of a tar; the folder that holds a file is its class.

    Files of a tar are read in place: nothing is unpacked, and worker processes share no file position.
    """

    def __init__(self, root: Path, entries: Iterable[Entry], tar: bool) -> None:
        self.root, self.tar = root, tar
        self.entries = sorted(entries, key=lambda entry: _natural(entry.name))
        folders = [os.path.dirname(entry.name) for entry in self.entries]
        self.classes = sorted(set(folders), key=_natural)
        index = {name: i for i, name in enumerate(self.classes)}
        self.labels = [index[name] for name in folders]
        listing = "".join(f"{entry.name}\0{entry.size}\n" for entry in self.entries)
        self.fingerprint = f"files/{hashlib.sha256(listing.encode()).hexdigest()}"

    def __len__(self) -> int:
        return len(self.entries)

    def id(self, index: int) -> str:
        return self.entries[index].name

    def label(self, index: int) -> int:
        return self.labels[index]

    def open(self, index: int) -> Image.Image:
        entry = self.entries[index]
        with open(self.root if self.tar else self.root / entry.name, "rb") as file:
            file.seek(entry.offset)
            return Image.open(io.BytesIO(file.read(entry.size))).convert("RGB")


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


def load(dataset: Dataset, resolution: int) -> Images:
    """The images of a configured data set. resolution: side in pixels of made images, if not configured.

    Raises UserError if it cannot be had.
    """
    if dataset.kind not in KINDS:
        raise unknown(
            f"there is no dataset.kind={dataset.kind}", dataset.kind, KINDS, "dataset.kind can be"
        )
    return KINDS[dataset.kind](dataset, resolution)


def _scenes(dataset: Dataset, resolution: int) -> Images:
    from vitsee.scenes import CLASSES, Scenes

    split = _split(dataset, ("train", "test"), "test")
    side = dataset.resolution or resolution
    scenes = Scenes(split=split, seed=dataset.seed, resolution=side, size=dataset.size or SCENES)
    return Made(scenes, CLASSES, f"scenes/{split}")


def _folder(dataset: Dataset, resolution: int) -> Images:
    if not dataset.root:
        raise UserError(
            f"dataset={dataset.name} needs the folder or .tar of the images: dataset.root=PATH"
            + (" (or the environment variable IMAGENET)" if dataset.name == "imagenet_val" else "")
        )
    root = Path(dataset.root).expanduser()
    if not root.exists():
        beside = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        raise UserError(f"dataset.root={root} does not exist.{nearest(root.name, beside)}")
    if root.is_dir():
        return _listed(root if dataset.split is None else _part(root, dataset.split))
    return _read_tar(root)


def _part(root: Path, split: str) -> Path:
    """The folder of a split: below the root, or the root itself if that is its name already."""
    if (root / split).is_dir():
        return root / split
    if root.name == split or not any((root / name).is_dir() for name in ("train", "val", "test")):
        return root
    there = sorted(path.name for path in root.iterdir() if path.is_dir())
    raise unknown(f"{root} has no folder {split!r} (dataset.split)", split, there, "it has")


def _listed(root: Path) -> Files:
    """Image files below a folder, links to folders not followed."""
    entries = [
        Entry(os.path.relpath(os.path.join(folder, file), root), _size(os.path.join(folder, file)))
        for folder, _, files in os.walk(root)
        for file in files
        if file.lower().endswith(ENDINGS) and not file.startswith(".")
    ]
    if not entries:
        raise UserError(
            f"there are no images in {root}; looked for {', '.join(ENDINGS)} in it and its folders"
        )
    return Files(root, entries, tar=False)


def _size(path: str) -> int:
    """Bytes of a file; 0 if it is a broken link, which decoding then reports."""
    return os.path.getsize(path) if os.path.exists(path) else 0


def _read_tar(path: Path) -> Files:
    try:
        with tarfile.open(path, "r:") as tar:
            entries = [
                Entry(member.name.removeprefix("./"), member.size, member.offset_data)
                for member in tar
                if member.isfile() and member.name.lower().endswith(ENDINGS)
            ]
        if entries and (end := max(e.offset + e.size for e in entries)) > path.stat().st_size:
            raise tarfile.ReadError(f"ends {end - path.stat().st_size} bytes too early")
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"cannot read {path} as an uncompressed tar ({error}); dataset.root is a folder or a .tar"
        ) from error
    if not entries:
        raise UserError(f"there are no images in {path}; looked for {', '.join(ENDINGS)}")
    return Files(path, entries, tar=True)


def _imagenette(dataset: Dataset, resolution: int) -> Images:
    from torchvision.datasets import Imagenette

    split = _split(dataset, ("train", "val"), "val")
    root = _cache(dataset)
    if not (root / "imagenette2-320" / split).is_dir():
        url = Imagenette._ARCHIVES["320px"][0]
        _download(dataset, url, lambda: Imagenette(root, split, "320px", download=True))
    return _listed(root / "imagenette2-320" / split)


def _cifar(dataset: Dataset, resolution: int) -> Images:
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset.kind]
    split = _split(dataset, ("train", "test"), "test")
    root = _cache(dataset)
    try:
        found = source(root, train=split == "train")
    except RuntimeError:  # not there, or damaged
        found = _download(
            dataset, source.url, lambda: source(root, train=split == "train", download=True)
        )
    return Arrays(found, f"{dataset.kind}/{split}")


def _download(dataset: Dataset, url: str, fetch: Callable[[], Any]) -> Any:
    """What `fetch` returns, with errors that say what to do."""
    root = _cache(dataset)
    remedy = (
        f"fetch {url} on a machine that can and put it into {root}, "
        f"or use dataset=scenes, or dataset=folder dataset.root=PATH"
    )
    require(url, f"dataset={dataset.name}", remedy)
    try:
        root.mkdir(parents=True, exist_ok=True)
        return fetch()
    except (OSError, RuntimeError) as error:
        raise UserError(f"download of dataset={dataset.name} failed ({error}); {remedy}") from error


def _hugging_face(dataset: Dataset, resolution: int) -> Images:
    if not dataset.path:
        raise UserError("dataset=hf needs the name of a data set: dataset.path=OWNER/NAME")
    asked = "-".join(
        re.sub(r"\W+", "_", str(part))
        for part in (dataset.path, dataset.config, dataset.split, dataset.column, dataset.take)
        if part is not None
    )
    tar = _cache(dataset) / f"hf-{asked}.tar"
    if not tar.exists():
        _stream_to(tar, dataset)
    return _read_tar(tar)


def _stream_to(path: Path, dataset: Dataset) -> None:
    """Write the first `take` images of a Hugging Face stream to a tar, as they are, whole or not at all."""
    try:
        import datasets
    except ImportError:
        raise UserError("dataset=hf needs the datasets library: pip install 'vitsee[hf]'") from None
    if not Path(str(dataset.path)).exists():
        remedy = "use dataset=scenes, or dataset=folder dataset.root=PATH"
        require("https://huggingface.co", f"dataset.path={dataset.path}", remedy)
    try:
        stream = datasets.load_dataset(
            str(dataset.path), dataset.config, split=dataset.split or "train", streaming=True
        )
        column = dataset.column or _image_column(stream.features, datasets.Image)
        stream = stream.cast_column(column, datasets.Image(decode=False)).take(dataset.take)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        with tarfile.open(partial, "w") as tar:
            for i, example in enumerate(stream):
                _append(tar, f"{_class_of(example, stream.features)}/{i:06d}", example[column])
        os.replace(partial, path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"cannot stream dataset.path={dataset.path} (config={dataset.config}, "
            f"split={dataset.split}, column={dataset.column}): {str(error).splitlines()[0]}"
        ) from error


def _image_column(features: Any, kind: type) -> str:
    columns = [name for name, feature in (features or {}).items() if isinstance(feature, kind)]
    if not columns:
        raise ValueError(f"no column holds images, there are: {', '.join(features or {})}")
    return columns[0]


def _class_of(example: dict[str, Any], features: Any) -> str:
    """The example's class as a folder name, `all` if it has none."""
    label = example.get("label")
    if label is None:
        return "all"
    names = getattr(features.get("label"), "names", None)
    return re.sub(r"[^\w .-]+", "_", names[label] if names else str(label))


def _append(tar: tarfile.TarFile, name: str, image: dict[str, Any]) -> None:
    content = image["bytes"] or Path(image["path"]).read_bytes()
    ending = (Image.open(io.BytesIO(content)).format or "jpeg").lower()
    member = tarfile.TarInfo(f"{name}.{ending}")
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _cache(dataset: Dataset) -> Path:
    """Where downloads are kept."""
    return Path(dataset.root or "~/.cache/vitsee").expanduser()


def _split(dataset: Dataset, there: tuple[str, ...], default: str) -> str:
    split = dataset.split or default
    if split not in there:
        raise unknown(
            f"dataset={dataset.name} has no dataset.split={split}", split, there, "it has"
        )
    return split


def _natural(name: str) -> list[Any]:
    """Sorting key in which img2 comes before img10."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


KINDS: dict[str, Callable[[Dataset, int], Images]] = {
    "scenes": _scenes,
    "folder": _folder,
    "imagenette": _imagenette,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "hf": _hugging_face,
}
