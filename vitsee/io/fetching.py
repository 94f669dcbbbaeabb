"""Downloads of large files: announced with their size, resumed where an earlier one stopped, and checked."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

PIECE = 2**20
"""Bytes read at a time."""
PATIENCE = 30
"""Seconds of silence after which a server is given up on."""


def fetch(url: str, path: Path, md5: str, what: str) -> None:
    """Download a file under a hidden name beside `path`, and rename it to `path` once it is complete with this MD5.

    An interrupted download is kept, and the next call resumes it. If several processes call this, one downloads and
    the others wait. what: the file's name in the log. Raises OSError if the file is incomplete or damaged.
    """
    partial = path.with_name(f".{path.name}.download")
    with partial.open("ab") as file:
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if has(path, "md5", md5):  # the process that held the lock has downloaded it
            partial.unlink(missing_ok=True)
            return
        _append(url, file, path.parent, what)
        if not has(partial, "md5", md5):
            partial.unlink(missing_ok=True)  # another process may have been here
            raise OSError(f"{path.name} was damaged in transit and removed: repeat the command")
        os.replace(partial, path)


def has(path: Path, algorithm: str, digest: str) -> bool:
    """Return whether a file with this content exists."""
    if not path.exists():
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest() == digest


def _append(url: str, file: BinaryIO, folder: Path, what: str) -> None:
    """Append the missing part of the file at this address."""
    from tqdm import tqdm

    there = os.fstat(file.fileno()).st_size
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        answer = urllib.request.urlopen(request, timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code == 416 and there:  # the file is complete
            return
        raise
    with answer:
        if answer.status != 206:  # from the beginning
            file.truncate(0)
            there = 0
        length = int(answer.headers.get("Content-Length") or 0)
        log.info("%s: downloading %s into %s, once", what, megabytes(there + length), folder)
        with tqdm(
            total=there + length, initial=there, unit="B", unit_scale=True, disable=None
        ) as bar:
            try:
                while piece := answer.read(PIECE):
                    file.write(piece)
                    bar.update(len(piece))
            except HTTPException as error:
                raise OSError(f"{type(error).__name__}: repeat the command to continue") from error
    file.flush()
    if os.fstat(file.fileno()).st_size < there + length:
        raise OSError("the connection was lost: repeat the command to continue")


def megabytes(size: int) -> str:
    """Return the size in readable units."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size:,} bytes"
