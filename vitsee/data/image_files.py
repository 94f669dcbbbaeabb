"""Image files of a folder or of a tar, found and read in place."""

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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from vitsee.data.images import Images, unreadable
from vitsee.data.rgb import rgb
from vitsee.errors import UserError, remedy

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")

LARGEST = 2**30
"""Bytes of the largest image file that is read."""

NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What the system says of a link that leads nowhere."""

SAMPLE = 64
"""Files, spread over the set, whose bytes tell it from another of the same names and sizes."""

HEAD = 2**20
"""Bytes of each of these that are read."""

PADDING = 2**20
"""Bytes after the end of a tar that are checked to be zeros: programs pad to blocks of up to that."""

WAYS = 1000
"""Links below links may lead to one folder in so many ways; they can make billions of a few images."""


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

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]  # read when it is asked for
        """SHA-256 of the names and sizes of all files, and of the bytes of some.

        Raises UserError if the system fails to read one of these.
        """
        listing = "".join(f"{entry.name}\0{entry.size}\n" for entry in self.entries)
        digest = hashlib.sha256(listing.encode(errors="surrogateescape"))  # not all is Unicode
        for entry in self.entries[:: -(-len(self.entries) // SAMPLE)]:
            try:
                digest.update(self._read(replace(entry, size=min(entry.size, HEAD))))
            except OSError as error:
                if error.errno is not None:
                    raise unreadable(entry.name, error) from error
                digest.update(b"\0")  # a bad image, judged when it is used
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


def in_folder(root: Path) -> Files:
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


def tar_entries(path: Path) -> list[Entry]:
    """Image files of a tar. Raises UserError if it is not a whole one."""
    refuse_pipes("dataset.root", path)
    try:
        with tarfile.open(path, "r:") as tar:
            # as unpacking it would: of several members of one name the last
            members = {_plain(member.name): member for member in _members(tar)}
            entries = [
                Entry(name, data.size, data.offset_data)
                for name, member in members.items()
                if _counts(name) and (data := _data(tar, member)).isfile()
            ]
            end = tar.offset
        with open(path, "rb") as file:
            file.seek(end)
            # tarfile takes a cut or damaged header for the end; the true one is a block of zeros.
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"damaged or cut off at byte {end}")
            if any(file.read(PADDING)):
                raise tarfile.ReadError(
                    f"more follows its end at byte {end}, as when tars are joined by cat: unpack them into "
                    f"one folder"
                )
    except (tarfile.TarError, KeyError, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read {path} as an uncompressed tar ({error}); dataset.root is a folder or a .tar"
        ) from error
    if not entries:
        raise UserError(f"there are no images in {path}; looked for {', '.join(ENDINGS)}")
    return entries


def refuse_pipes(option: str, path: Path) -> None:
    """Raise UserError for what is there but is no file or folder: to open it could wait for ever."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(
            f"{option}={path} is neither a folder nor a file, but a pipe, a socket or a device"
        )


def _plain(name: str) -> str:
    """A member's name below the root, as it would be unpacked."""
    return posixpath.normpath(name).lstrip("/")


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


def _natural(name: str) -> list[Any]:
    """Sorting key in which img2 comes before img10."""
    parts = re.split(r"(\d{1,18})", name.lower())
    numbered = [int(part) if i % 2 else part for i, part in enumerate(parts)]
    return [numbered, name]  # img1, img01 and IMG1 tie: the name itself decides, on every machine
