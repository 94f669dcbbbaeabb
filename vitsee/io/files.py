"""Reading files that anybody may have made: plain ones only, never waiting for a pipe, and no hidden ones."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from vitsee.errors import UserError


def opened(path: Path) -> BinaryIO:
    """The file, to be read. Raises UserError if it is a pipe or a device, and OSError as `open` does."""
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise UserError(f"{path} is a pipe or a device, not a file; remove it or name another")


def _without_waiting(path: str, flags: int) -> int:
    """Opening a pipe would wait until somebody writes into it, which may be never."""
    return os.open(path, flags | os.O_NONBLOCK)


def content(path: Path) -> bytes:
    """All of the file. Raises what `opened` does."""
    with opened(path) as file:
        return file.read()


def visible(folder: Path, ending: str) -> list[Path]:
    """The plain files of the folder with this ending, but hidden ones, which editors and systems leave."""
    found = sorted(folder.glob(f"*{ending}"))
    return [path for path in found if not path.name.startswith(".") and path.is_file()]
