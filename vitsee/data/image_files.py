"""Image files in a folder or in a tar, read in place."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import posixpath
import re
import stat
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from vitsee.data.images import Images, unreadable
from vitsee.data.rgb import rgb
from vitsee.errors import UserError, remedy

ENDINGS = (
    *(".jpg", ".jpeg", ".jp2", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".pbm", ".pgm", ".pnm", ".ppm"),
)

LARGEST = 2**30
"""Largest size of an image file, in bytes."""

NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""System errors for a broken link."""

SAMPLE = 64
"""Number of files, spread over the set, whose bytes distinguish it from one with the same names and sizes."""

HEAD = 2**20
"""Bytes that are read from each of these files."""

PADDING = 2**20
"""Bytes after the end of a tar that must be zero; programs pad to blocks of up to this size."""

WAYS = 1000
"""Largest number of paths to one folder through nested links; a few links can turn a few images into billions."""


@dataclass(frozen=True)
class Entry:
    """One image file: its path in the folder or tar, and its size and offset in the tar."""

    name: str
    size: int
    offset: int = 0


class Files(Images):
    """Image files in a folder or in a tar. The folder that contains a file is its class.

    A tar is read in place: nothing is unpacked, and worker processes do not share a file position. known: the classes
    in the order of their labels, by default that of their names, as in torchvision. Images of other classes have the
    label -1.
    """

    order: Sequence[str] = ()
    """The classes, if their order is not that of the images."""

    def __init__(
        self, root: Path, entries: Iterable[Entry], tar: bool, known: Sequence[str] = ()
    ) -> None:
        self.root, self.tar = root, tar
        self.entries = sorted(entries, key=lambda entry: natural(entry.name))
        folders = [os.path.dirname(entry.name) for entry in self.entries]
        there = {*folders}
        self.classes = [name for name in known if name in there] or sorted(there)
        index = {name: i for i, name in enumerate(self.classes)}
        self.labels = [index.get(name, -1) for name in folders]
        if self.classes != sorted(there, key=natural):
            self.order = self.classes

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]  # read on demand
        """SHA-256 of the names and sizes of all files, and of the bytes of some.

        Raises UserError if the system fails to read one of these.
        """
        listing = "".join(f"{entry.name}\0{entry.size}\n" for entry in self.entries)
        digest = hashlib.sha256(listing.encode(errors="surrogateescape"))  # not all is Unicode
        digest.update("\n".join(self.order).encode(errors="surrogateescape"))
        for entry in self.entries[:: -(-len(self.entries) // SAMPLE)]:
            try:
                digest.update(self._read(replace(entry, size=min(entry.size, HEAD))))
            except OSError as error:
                if error.errno is not None:
                    raise unreadable(entry.name, error) from error
                digest.update(b"\0")  # a bad image, dealt with when it is used
        return f"files/{digest.hexdigest()}"

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

    def _path(self, entry: Entry) -> Path:
        """Return the file on disk that contains the image."""
        return self.root if self.tar else self.root / entry.name

    def _read(self, entry: Entry) -> bytes:
        """Return the file's bytes. Raises OSError, without an `errno` if only this file is at fault."""
        path = self._path(entry)
        try:
            with open(path, "rb") as file:
                file.seek(entry.offset)
                return file.read(entry.size)
        except OSError as error:
            broken_link = entry.size == 0 and error.errno in NOWHERE
            forbidden = error.errno == errno.EACCES and os.access(path.parent, os.R_OK | os.X_OK)
            if self.tar or not (broken_link or forbidden):
                raise
            raise OSError(error.strerror) from error

    def changed_since(self, moment: float) -> list[str]:
        paths = dict.fromkeys(map(self._path, self.entries))
        return [str(path) for path in paths if path.exists() and path.stat().st_mtime > moment]


def in_folder(root: Path) -> Files:
    """Return the image files below a folder. Links to folders are followed, but not in cycles.

    Raises UserError if there are no images, if a folder cannot be listed, or if nested links lead to one
    folder along too many paths.
    """
    try:
        entries = list(_walk(root))
    except OSError as error:
        raise UserError(
            f"cannot list {error.filename} ({error.strerror}); {remedy(error)}"
        ) from error
    if not entries:
        raise UserError(
            f"there are no images in {root}; looked for {', '.join(ENDINGS)} in it and its subfolders"
        )
    return Files(root, entries, tar=False)


def _walk(root: Path) -> Iterator[Entry]:
    """Yield the image files below a folder, without hidden folders.

    A link to a folder that contains the current one, directly or through links, is not followed.
    """
    ways: Counter[str] = Counter()
    listed = lru_cache(maxsize=100)(_listing)  # links may lead to a folder again and again
    # A folder's real path, its name below the root, and the real folders whose links led there.
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
                    f"nested links lead to {target} along more than {WAYS} paths, e.g. {below}{name}; "
                    f"remove some of the links in {root} and in the folders that they lead to"
                )
            ahead.append((target, f"{below}{name}/", on))


@dataclass
class _Listing:
    """The content of a folder: images with sizes, folders, and links to folders with real paths."""

    images: list[tuple[str, int]]
    folders: list[str]
    links: list[tuple[str, str]]


def _listing(folder: str) -> _Listing:
    listing = _Listing([], [], [])
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                listing.folders.append(entry.name)
            elif entry.is_symlink() and stat.S_ISDIR(_mode_and_size(entry.path)[0]):
                listing.links.append((entry.name, os.path.realpath(entry.path)))
            elif _counts(entry.name):
                mode, size = _mode_and_size(entry.path)
                # Opening a pipe or a device could block forever.
                if mode == 0 or stat.S_ISREG(mode):
                    listing.images.append((entry.name, size))
    return listing


def _counts(name: str, endings: tuple[str, ...] = ENDINGS) -> bool:
    """Return whether the name has one of these endings and is neither hidden nor in a hidden folder."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return name.lower().endswith(endings) and not hidden


def _mode_and_size(path: str) -> tuple[int, int]:
    """Return mode and size of a file or of a link's target; zeros for a broken link, which decoding reports."""
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno not in NOWHERE:
            raise
        return 0, 0
    return status.st_mode, status.st_size


def tar_entries(path: Path, endings: tuple[str, ...] = ENDINGS) -> list[Entry]:
    """Return the files with these endings in a tar. Raises UserError if it is not a complete, uncompressed tar."""
    refuse_pipes("dataset.root", path)
    try:
        with tarfile.open(path, "r:") as tar:
            # like unpacking: if several members have the same name, the last one counts
            members = {_plain(member.name): member for member in _members(tar)}
            entries = [
                Entry(name, data.size, data.offset_data)
                for name, member in members.items()
                if _counts(name, endings) and (data := _data(tar, member)).isfile()
            ]
            end = tar.offset
        with open(path, "rb") as file:
            file.seek(end)
            # tarfile takes a truncated or damaged header for the end; the real end is a block of zeros.
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"damaged or truncated at byte {end}")
            if any(file.read(PADDING)):
                raise tarfile.ReadError(
                    f"more data follows its end at byte {end}, as if tars had been joined with cat: unpack them "
                    f"into one folder"
                )
    except (tarfile.TarError, KeyError, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read {path} as an uncompressed tar ({error}); dataset.root must be a folder or a .tar"
        ) from error
    if not entries:
        raise UserError(f"there are no images in {path}; looked for {', '.join(endings)}")
    return entries


def refuse_pipes(option: str, path: Path) -> None:
    """Raise UserError for a path that exists but is not a file or folder: opening it could block forever."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(
            f"{option}={path} is neither a folder nor a file: it is a pipe, a socket or a device"
        )


def _plain(name: str) -> str:
    """Return a member's name below the root, as it would be unpacked."""
    return posixpath.normpath(name).lstrip("/")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members in order. Raises ReadError for impossible sizes, and for sparse files."""
    before = -1
    for member in tar:
        if member.size < 0 or tar.offset <= before:  # tarfile itself would loop
            raise tarfile.ReadError(f"{member.name} has an impossible size of {member.size} bytes")
        if member.issparse():
            raise tarfile.ReadError(f"{member.name} is a sparse file: pack without --sparse")
        before = tar.offset
        yield member


def _data(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return the member that stores the bytes: for a hard link, the member that it links to."""
    return tar.getmember(member.linkname) if member.islnk() else member


def natural(name: str) -> list[Any]:
    """Return a sorting key in which img2 comes before img10."""
    parts = re.split(r"(\d{1,18})", name.lower())
    numbered = [int(part) if i % 2 else part for i, part in enumerate(parts)]
    # img1, img01 and IMG1 tie: the name breaks the tie, the same way on every machine.
    return [numbered, name]
