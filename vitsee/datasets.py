"""Data sets: images in a fixed order, each with an id and a label; nothing is decoded until asked for."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from vitsee import writing
from vitsee.config import Dataset
from vitsee.errors import UserError, expanded, nearest, remedy, unknown
from vitsee.network import require
from vitsee.rgb import rgb

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
LARGEST = 2**30
"""Bytes of the largest image file that is read."""
NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What the system says of a link that leads nowhere."""
WAYS = 1000
"""Links below links may lead to one folder in so many ways; they can make billions of a few images."""
SCENES = 10_240
"""How many scenes there are when nobody says; they are made when asked for."""
BUFFER = 1000
"""Hugging Face: images held to be shuffled while streaming; a set sorted by class is mixed no wider."""


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
        listed = listing.encode(errors="surrogateescape")  # names need not be Unicode
        self.fingerprint = f"files/{hashlib.sha256(listed).hexdigest()}"

    def __len__(self) -> int:
        return len(self.entries)

    def id(self, index: int) -> str:
        return self.entries[index].name

    def label(self, index: int) -> int:
        return self.labels[index]

    def open(self, index: int) -> Image.Image:
        entry = self.entries[index]
        if entry.size > LARGEST:
            raise ValueError(f"{entry.size} bytes are too many for an image file")
        with Image.open(io.BytesIO(self._read(entry))) as image:
            return rgb(image)

    def _read(self, entry: Entry) -> bytes:
        """The file's bytes. Raises OSError; without an `errno` if the file alone is to blame for it."""
        path = self.root if self.tar else self.root / entry.name
        try:
            with open(path, "rb") as file:
                file.seek(entry.offset)
                return file.read(entry.size)
        except OSError as error:
            led_nowhere = entry.size == 0 and error.errno in NOWHERE
            closed = error.errno == errno.EACCES and os.access(path.parent, os.R_OK | os.X_OK)
            if self.tar or not (led_nowhere or closed):
                raise
            raise OSError(error.strerror) from error

    def changed_since(self, moment: float) -> list[str]:
        paths = [self.root] if self.tar else [self.root / entry.name for entry in self.entries]
        return [str(path) for path in paths if path.exists() and path.stat().st_mtime > moment]


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
    side = resolution if dataset.resolution is None else dataset.resolution
    size = SCENES if dataset.size is None else dataset.size
    for option, value, least in (
        ("resolution", side, 1),
        ("size", size, 1),
        ("seed", dataset.seed, 0),
    ):
        if value < least:
            raise UserError(f"dataset.{option} must be at least {least}, got {value}")
    scenes = Scenes(split=split, seed=dataset.seed, resolution=side, size=size)
    return Made(scenes, CLASSES, f"scenes/{split}")


def _folder(dataset: Dataset, resolution: int) -> Images:
    if not dataset.root:
        raise UserError(
            f"dataset={dataset.name} needs the folder or .tar of the images: dataset.root=PATH"
            + (" (or the environment variable IMAGENET)" if "imagenet" in dataset.name else "")
        )
    root = expanded(dataset.root)
    if not root.exists():
        beside = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        raise UserError(f"dataset.root={root} does not exist.{nearest(root.name, beside)}")
    if root.is_dir():
        there = {path.name for path in root.iterdir() if path.is_dir()}
        return _listed(root / _part(dataset, root, there))
    entries = _entries(root)
    part = _part(dataset, root, {e.name.split("/")[0] for e in entries if "/" in e.name})
    below = f"{part}/" if part else ""
    chosen = [
        replace(entry, name=entry.name.removeprefix(below))
        for entry in entries
        if entry.name.startswith(below)
    ]
    return Files(root, chosen, tar=True)


def _part(dataset: Dataset, root: Path, there: set[str]) -> str:
    """The folder of the split below the root; nothing if all of the root is meant.

    That is so if the root has the name of the split already, and for imagenet_val, whose classes may be
    in the root. there: names of the folders in the root.
    """
    split = dataset.split
    if split is None or split in there:
        return split or ""
    if split in (root.name, root.stem):
        return ""
    if dataset.name == "imagenet_val" and not there & {"train", "val", "test"}:
        return ""
    if not there:
        raise UserError(f"{root} has no folder {split!r} (dataset.split), and no folders at all")
    raise unknown(f"{root} has no folder {split!r} (dataset.split)", split, there, "it has")


def _listed(root: Path) -> Files:
    """Image files below a folder; links to folders are followed, but not around in circles.

    Raises UserError if there are none, if a folder cannot be listed, and for links below links that lead
    into one folder in very many ways.
    """
    try:
        entries = list(_found(root))
    except OSError as error:
        raise UserError(
            f"cannot list {error.filename} ({error.strerror}); {remedy(error)}"
        ) from error
    if not entries:
        raise UserError(
            f"there are no images in {root}; looked for {', '.join(ENDINGS)} in it and its folders"
        )
    return Files(root, entries, tar=False)


def _found(root: Path) -> Iterator[Entry]:
    """The image files below a folder, hidden folders left out.

    A link is not followed to a folder that we are in, on the way of links that led here, or above one.
    """
    ways: Counter[str] = Counter()
    listed = lru_cache(maxsize=100)(_listing)  # links may lead to a folder again and again
    # A folder by its true path, its name below the root, and the true folders whose links led there.
    ahead: list[tuple[str, str, tuple[str, ...]]] = [(os.path.realpath(root), "", ())]
    while ahead:
        folder, below, way = ahead.pop()
        listing = listed(folder)
        for name, size in listing.images:
            yield Entry(below + name, size)
        for name in listing.folders:
            ahead.append((os.path.join(folder, name), f"{below}{name}/", way))
        on = (*way, folder)
        for name, target in listing.links:
            if any(os.path.join(place, "").startswith(os.path.join(target, "")) for place in on):
                continue
            ways[target] += bool(way)
            if ways[target] > WAYS:
                raise UserError(
                    f"links below links lead to {target} in more than {WAYS} ways, as {below}{name}; "
                    f"remove some of the links in {root} and in the folders that they lead to"
                )
            ahead.append((target, f"{below}{name}/", on))


@dataclass
class _Listing:
    """What is in a folder: images with their sizes, folders, and links to folders with their true paths."""

    images: list[tuple[str, int]]
    folders: list[str]
    links: list[tuple[str, str]]


def _listing(folder: str) -> _Listing:
    found = _Listing([], [], [])
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                found.folders.append(entry.name)
            elif entry.is_symlink() and stat.S_ISDIR(_mode_and_size(entry.path)[0]):
                found.links.append((entry.name, os.path.realpath(entry.path)))
            elif _counts(entry.name):
                mode, size = _mode_and_size(entry.path)
                if mode == 0 or stat.S_ISREG(
                    mode
                ):  # to open a pipe or a device could wait for ever
                    found.images.append((entry.name, size))
    return found


def _counts(name: str) -> bool:
    """Is this an image file, by its ending, neither hidden nor in a hidden folder?"""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return name.lower().endswith(ENDINGS) and not hidden


def _mode_and_size(path: str) -> tuple[int, int]:
    """Of a file or of what a link leads to; zeros if it leads nowhere, which decoding then reports."""
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno not in NOWHERE:
            raise
        return 0, 0
    return found.st_mode, found.st_size


def _entries(path: Path) -> list[Entry]:
    """Image files of a tar. Raises UserError if it is not a whole one."""
    _refuse_pipes("dataset.root", path)
    try:
        with tarfile.open(path, "r:") as tar:
            members = [(m.name.removeprefix("./"), m) for m in _members(tar)]
            entries = [
                Entry(name, data.size, data.offset_data)
                for name, member in members
                if _counts(name) and (data := _data(tar, member)).isfile()
            ]
            end = tar.offset
        with open(path, "rb") as file:
            file.seek(end)
            # tarfile takes a cut or damaged header for the end; the true one is a block of zeros.
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"damaged or cut off at byte {end}")
    except (tarfile.TarError, KeyError, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read {path} as an uncompressed tar ({error}); dataset.root is a folder or a .tar"
        ) from error
    if not entries:
        raise UserError(f"there are no images in {path}; looked for {', '.join(ENDINGS)}")
    return entries


def _refuse_pipes(option: str, path: Path) -> None:
    """Raise UserError for what is there but is no file or folder: to open it could wait for ever."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(
            f"{option}={path} is neither a folder nor a file, but a pipe, a socket or a device"
        )


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members in their order. Raises ReadError for sizes that no tar has, and for sparse files."""
    before = -1
    for member in tar:
        if member.size < 0 or tar.offset <= before:  # tarfile alone would read in circles
            raise tarfile.ReadError(f"{member.name} is of {member.size} bytes")
        if member.issparse():
            raise tarfile.ReadError(f"{member.name} is stored sparse: pack without --sparse")
        before = tar.offset
        yield member


def _data(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The member with the bytes: for a hard link, the first one of that file."""
    return tar.getmember(member.linkname) if member.islnk() else member


def _imagenette(dataset: Dataset, resolution: int) -> Images:
    from torchvision.datasets import Imagenette

    split = _split(dataset, ("train", "val"), "val")
    root = _cache(dataset)
    unpacked = root / "imagenette2-320"
    if not (unpacked / split).is_dir():
        if unpacked.exists():
            raise UserError(
                f"{unpacked} has no folder {split!r}: remove it, and it is unpacked anew"
            )
        url, md5 = Imagenette._ARCHIVES["320px"]
        _download(dataset, url, md5, lambda: _unpack(root / Path(url).name, unpacked))
    return _listed(unpacked / split)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the archive's one folder whole or not at all: torchvision would take a part for the whole."""
    from torchvision.datasets.utils import extract_archive

    partial = writing.unfinished(folder)
    try:
        extract_archive(archive, partial)
        os.replace(partial / folder.name, folder)
    except OSError:
        if not folder.is_dir():  # by another process meanwhile, whole
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _cifar(dataset: Dataset, resolution: int) -> Images:
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset.kind]
    split = _split(dataset, ("train", "test"), "test")
    root = _cache(dataset)
    try:
        found = source(root, train=split == "train")
    except RuntimeError:  # not there, or damaged

        def unpacked() -> Any:
            if not (root / source.base_folder).exists():
                _unpack(root / source.filename, root / source.base_folder)
            return source(root, train=split == "train", download=True)  # mends what is damaged

        found = _download(dataset, source.url, source.tgz_md5, unpacked)
    return Arrays(found, f"{dataset.kind}/{split}")


def at_home(path: Path) -> str:
    """The path as a person writes it, ~ for the home folder."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def _download(dataset: Dataset, url: str, md5: str, unpack: Callable[[], Any]) -> Any:
    """What `unpack` returns once the archive is in the cache folder; errors say what to do.

    An archive that is whole already, fetched before or put there by hand, needs no network.
    """
    from torchvision.datasets.utils import check_integrity, download_url

    root = _cache(dataset)
    archive = root / Path(url).name
    remedy = (
        f"fetch {url} on a machine that can and put it into {at_home(root)}, "
        f"or use dataset=scenes, or dataset=folder dataset.root=PATH"
    )
    fetched = check_integrity(archive, md5)
    if not fetched:
        require(url, f"dataset={dataset.name}", remedy)
    try:
        root.mkdir(parents=True, exist_ok=True)
        writing.clear(root)
        if not fetched:
            with writing.whole(archive) as partial:
                download_url(url, root, partial.name, md5)
        return unpack()
    except (OSError, RuntimeError) as error:
        raise UserError(f"download of dataset={dataset.name} failed ({error}); {remedy}") from error


def _hugging_face(dataset: Dataset, resolution: int) -> Images:
    if not dataset.path:
        raise UserError("dataset=hf needs the name of a data set: dataset.path=OWNER/NAME")
    if dataset.take < 1:
        raise UserError(f"dataset.take must be at least 1, got {dataset.take}")
    _refuse_pipes("dataset.path", Path(dataset.path))
    tar = _cache(dataset) / f"hf-{_asked(dataset)}.tar"
    if not tar.exists():
        _stream_to(tar, dataset)
    return Files(tar, _entries(tar), tar=True)


def _asked(dataset: Dataset) -> str:
    """A file name for what is asked of a Hugging Face data set; two differ if anything asked does."""
    keys = ("path", "config", "split", "column", "take", "seed")
    asked = {key: value for key, value in asdict(dataset).items() if key in keys}
    if Path(str(dataset.path)).exists():
        asked["path"] = str(Path(str(dataset.path)).resolve())
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9.]+', '_', Path(str(dataset.path)).name)}-{digest}"


def _stream_to(path: Path, dataset: Dataset) -> None:
    """Write `take` images of a shuffled Hugging Face stream to a tar, as they are, whole or not at all."""
    try:
        import datasets
    except ImportError:
        raise UserError("dataset=hf needs the datasets library: pip install 'vitsee[hf]'") from None
    if not Path(str(dataset.path)).exists():
        remedy = "use dataset=scenes, or dataset=folder dataset.root=PATH"
        require("https://huggingface.co", f"dataset.path={dataset.path}", remedy)
    path.parent.mkdir(parents=True, exist_ok=True)
    writing.clear(path.parent)
    try:
        stream = datasets.load_dataset(
            str(dataset.path), dataset.config, split=dataset.split or "train", streaming=True
        )
        features = stream.features or {}
        column = _column(features, datasets.Image, dataset.column)
        stream = stream.cast_column(column, datasets.Image(decode=False))
        stream = stream.shuffle(seed=dataset.seed, buffer_size=BUFFER).take(dataset.take)
        with writing.whole(path) as partial, tarfile.open(partial, "w") as tar:
            for i, example in enumerate(stream):
                _append(tar, _class_of(example, features), i, example[column])
    except Exception as error:  # an interrupted stream has many names, by library
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"cannot stream dataset.path={dataset.path} (config={dataset.config}, "
            f"split={dataset.split}, column={dataset.column}): {reason or type(error).__name__}"
        ) from error


def _column(features: Any, kind: type, asked: str | None) -> str:
    """The column of images: the one asked for, else the first of that type."""
    there = [name for name, feature in features.items() if isinstance(feature, kind)]
    if not there or (asked and asked not in there):
        found = f"those of images are: {', '.join(there)}" if there else "none holds images"
        raise ValueError(f"the columns are: {', '.join(features)}; {found}")
    return asked or there[0]


def _class_of(example: dict[str, Any], features: Any) -> str:
    """The example's class as a folder name; `all` if it has none or, as in hidden test sets, label -1."""
    named = [name for name, feature in features.items() if hasattr(feature, "names")]
    column = "label" if "label" in features else next(iter(named), "")
    label, names = example.get(column), getattr(features.get(column), "names", None)
    if label is None or label == -1:
        return "all"
    return re.sub(r"[^\w -]+", "_", names[label] if names else str(label))


def _append(tar: tarfile.TarFile, folder: str, index: int, image: dict[str, Any] | None) -> None:
    """Add an image under a name that tells its content, so that the fingerprint follows the content.

    One that is missing or damaged is kept as it is, for `on_bad_image` to judge when it is used.
    """
    content = _content(image or {"bytes": b""})
    digest = hashlib.sha256(content).hexdigest()[:8]
    member = tarfile.TarInfo(f"{folder}/{index:06d}-{digest}.jpg")  # Pillow goes by the content
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _content(image: dict[str, Any]) -> bytes:
    if image["bytes"] is not None:
        return image["bytes"]
    from datasets.utils.file_utils import xopen  # a path in a stream may be a URL

    with xopen(image["path"], "rb") as file:
        return file.read()


def _cache(dataset: Dataset) -> Path:
    """Where downloads are kept."""
    return expanded(dataset.root or "~/.cache/vitsee")


def _split(dataset: Dataset, there: tuple[str, ...], default: str) -> str:
    split = dataset.split or default
    if split not in there:
        raise unknown(
            f"dataset={dataset.name} has no dataset.split={split}", split, there, "it has"
        )
    return split


def _natural(name: str) -> list[Any]:
    """Sorting key in which img2 comes before img10."""
    parts = re.split(r"(\d{1,18})", name.lower())
    numbered = [int(part) if i % 2 else part for i, part in enumerate(parts)]
    return [numbered, name]  # img1, img01 and IMG1 tie: the name itself decides, on every machine


KINDS: dict[str, Callable[[Dataset, int], Images]] = {
    "scenes": _scenes,
    "folder": _folder,
    "imagenette": _imagenette,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "hf": _hugging_face,
}
