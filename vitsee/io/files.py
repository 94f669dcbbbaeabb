"""Reading files of unknown origin: regular files only, without waiting for a pipe."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from vitsee.errors import UserError


def opened(path: Path) -> BinaryIO:
    """Open the file for reading. Raises UserError if it is a pipe or a device, and OSError as `open` does."""
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise UserError(f"{path} is a pipe or a device, not a file; remove it or give a different path")


def _without_waiting(path: str, flags: int) -> int:
    """Open without blocking: opening a pipe would wait until something writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def content(path: Path) -> bytes:
    """Return the whole content of the file. Raises the errors of `opened`."""
    with opened(path) as file:
        return file.read()


def visible(folder: Path, ending: str) -> list[Path]:
    """Return the folder's regular files with this ending, except hidden ones (editors and systems leave some)."""
    paths = sorted(folder.glob(f"*{ending}"))
    return [path for path in paths if not path.name.startswith(".") and path.is_file()]
