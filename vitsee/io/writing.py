"""Files that are written whole or not at all: first under a name that nobody else can choose, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LEFT = 3600.0
"""Seconds after which what was half written is taken for left behind."""


def unfinished(path: Path) -> Path:
    """A name beside this one for what is not whole yet; no other process or machine chooses the same."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Within the block, the name of a file to fill; at its end the file is called `path`.

    If anything fails there is no new file, and a previous one stays.
    """
    partial = unfinished(path)
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove what was left half written in this folder, by a process that was killed, an hour ago or more."""
    for partial in folder.glob(".*.partial"):
        with suppress(OSError):  # another process may have removed or finished it
            parts = (partial, *partial.rglob("*"))  # of a folder that is being unpacked
            if time.time() - max(part.stat().st_mtime for part in parts) > LEFT:
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
