"""Errors that are the user's to fix; the command line shows their message and no traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

WHOLE = 100
"""So many names are told in full,"""
FEW = 10
"""and of more than that only so many, the nearest first."""


class UserError(ValueError):
    """Something asked for cannot be done; the message says what can. Exit code 2."""


class Incomplete(UserError):
    """A result was asked for before every minibatch was counted exactly once. Exit code 3."""


class Busy(Incomplete):
    """Another process is measuring it at this moment."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """` Did you mean x?`, or nothing if no valid word is near."""
    close = get_close_matches(word, list(valid), 1)
    return f" Did you mean {close[0]}?" if close else ""


def unknown(problem: str, word: str, valid: Iterable[str], lead: str) -> UserError:
    """What was asked, what exists, the nearest match; of very many that exist, a few and how many."""
    names = sorted(valid)
    more = ""
    if len(names) > WHOLE:
        near = get_close_matches(word, names, FEW)
        shown = [*near, *(name for name in names if name not in near)][:FEW]
        names, more = shown, f" … and {len(names) - FEW:,} more"
    return UserError(f"{problem}; {lead}: {', '.join(names)}{more}.{nearest(word, names)}")


def unwritable(path: Path, error: OSError) -> UserError:
    """What the system refused to write, and what to do."""
    return UserError(
        f"cannot write {path}: {error.strerror or error}; free some space or choose another folder "
        f"with run.outputs=PATH (what was saved before is kept)"
    )


def printable(message: str) -> str:
    """In one line, and without what a terminal would obey: file names may hold any character."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in message
    )


class _Plain(logging.Formatter):
    """The message alone, in one line."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def speak_plainly(level: int = logging.INFO) -> None:
    """Log vitsee's messages as lines of their own on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("vitsee").setLevel(level)
