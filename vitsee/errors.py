"""Errors that are the user's to fix; the command line shows their message and no traceback."""

from __future__ import annotations

import errno
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


_REMEDIES = {
    ("EACCES", "EPERM"): "ask its owner for the right to it",
    ("ENOENT",): "check the name",
    ("ENOTDIR",): "a part of this path is a file: check the name",
    ("EISDIR",): "it is a folder where a file is needed: move it away",
    ("EEXIST",): "it is in the way: move it away",
    ("ENAMETOOLONG",): "most file systems take names of 255 bytes: shorten it",
    ("ELOOP",): "it is a link that leads to itself: mend or remove it",
    ("ENXIO", "ENODEV"): "it is a pipe or a device, not a file: remove it",
    ("EBUSY", "ETXTBSY", "ENOTEMPTY"): "another process uses it: wait for that one to end",
    ("ENOSPC",): "free some space",
    ("EDQUOT",): "free some of your quota",
    ("EFBIG",): "the file system or a limit (ulimit -f) allows no file as large: raise the limit",
    ("EROFS",): "mount it writable",
    ("EMFILE", "ENFILE"): "raise the limit of open files (ulimit -n 4096), or use run.workers=0",
    ("EAGAIN", "ENOMEM"): "free some memory, or use fewer run.workers",
    ("EIO",): "the disk or the file server fails: see its log, then give the same command again",
    ("ESTALE",): "the file server has lost it: give the same command again",
}
"""What to do about what the system refuses, by the names of its errors."""
_BY_NUMBER = {
    number: advice
    for names, advice in _REMEDIES.items()
    for number in (getattr(errno, name, None) for name in names)
}


def remedy(error: OSError) -> str:
    """What to do about it."""
    return _BY_NUMBER.get(error.errno, "see to it, then give the same command again")


def refused(error: OSError) -> str:
    """What the system refused, of which file if it says so, and what to do; in one line."""
    words = error.strerror or " ".join(str(error).split()) or type(error).__name__
    named = [str(p) for p in (error.filename, error.filename2) if isinstance(p, (str, Path))]
    of = f"cannot use {' as '.join(named)}: " if named else ""
    return f"{of}{words}; {remedy(error)}"


def unwritable(path: Path, error: OSError) -> UserError:
    """What the system refused to write, and what to do."""
    return UserError(
        f"cannot write {path}: {error.strerror or error}; {remedy(error)}, or choose another folder "
        f"with run.outputs=PATH, or for `vitsee plot` a copy of this one (what was saved before is kept)"
    )


def expanded(path: str) -> Path:
    """The path with the home folder in place of `~`. Raises UserError if there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        whose = Path(path).parts[0]
        why = "the variable HOME is not set" if whose == "~" else f"there is no user {whose[1:]}"
        raise UserError(f"{path}: {why}; write the path in full") from error


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
