"""Atomic writing of files: first under a unique temporary name, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LEFT = 3600.0
"""Age in seconds at which a temporary file counts as abandoned."""


def unfinished(path: Path) -> Path:
    """Return a temporary name in the same folder that no other process or machine uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file to write, which becomes `path` when the block ends.

    If anything fails, no new file appears, and a previous one is kept.
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
    """Remove temporary files in this folder that a killed process left an hour ago or earlier."""
    for partial in folder.glob(".*.partial"):
        with suppress(OSError):  # another process may have removed or finished it
            parts = (partial, *partial.rglob("*"))  # it may be a folder that is being unpacked
            if time.time() - max(part.stat().st_mtime for part in parts) > LEFT:
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
