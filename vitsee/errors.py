"""Errors that the user can fix, shown without a traceback; remedies for system errors; plain logging."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

WHOLE = 100
"""The longest list of names that a message gives in full."""
FEW = 10
"""How many names of a longer list a message gives, the closest matches first."""


class UserError(ValueError):
    """The request cannot be carried out; the message says what can. Exit code 2."""


class Died(UserError):
    """A process that this one needs has died, perhaps of a signal to all processes of the command."""


class Incomplete(UserError):
    """A result was requested before every minibatch was counted exactly once. Exit code 3."""


class Busy(Incomplete):
    """Another process is currently measuring this result."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return ` Did you mean x?`, or an empty string if no valid word is close.

    Of several that are close, one with the same letters (mien: mine) comes first.
    """
    close = get_close_matches(word, list(valid))
    close.sort(key=lambda one: sorted(one) != sorted(word))
    return f" Did you mean {close[0]}?" if close else ""


def unknown(problem: str, word: str, valid: Iterable[str], lead: str) -> UserError:
    """Return the error for an unknown name: the problem, the valid names and the closest match.

    If there are more than `WHOLE` names, the message lists some and says how many it leaves out.
    """
    names = sorted(valid)
    more = ""
    if len(names) > WHOLE:
        near = get_close_matches(word, names, FEW)
        shown = [*near, *(name for name in names if name not in near)][:FEW]
        names, more = shown, f" … and {len(names) - FEW:,} more"
    return UserError(f"{problem}; {lead}: {', '.join(names)}{more}.{nearest(word, names)}")


_REMEDIES = {
    ("EACCES", "EPERM"): "ask its owner for permission",
    ("ENOENT",): "check the name",
    ("ENOTDIR",): "part of this path is a file, not a folder: check the name",
    ("EISDIR",): "there is a folder where a file is needed: move it away",
    ("EEXIST",): "it is in the way: move it away",
    ("ENAMETOOLONG",): "most file systems allow names of up to 255 bytes: shorten it",
    ("ELOOP",): "it is a link that leads back to itself: fix or remove it",
    ("ENXIO", "ENODEV"): "it is a pipe or a device, not a file: remove it",
    ("EBUSY", "ETXTBSY", "ENOTEMPTY"): "another process is using it: wait for that process to end",
    ("ENOSPC",): "free some space",
    ("EDQUOT",): "free some of your quota",
    ("EFBIG",): "the file system or ulimit -f does not allow files this large: raise the limit",
    ("EROFS",): "mount the file system read-write",
    ("EMFILE", "ENFILE"): "raise the limit on open files (ulimit -n 4096), or use run.workers=0",
    ("EAGAIN", "ENOMEM"): "free some memory, or use fewer run.workers",
    ("EIO",): "the disk or file server is failing: check its log, then repeat the same command",
    ("ESTALE",): "the file server has lost track of it: repeat the same command",
}
"""What the user can do about a system error, by error name."""
_BY_NUMBER = {
    number: advice
    for names, advice in _REMEDIES.items()
    for number in (getattr(errno, name, None) for name in names)
}


def remedy(error: OSError) -> str:
    """Return what the user can do about a system error."""
    return _BY_NUMBER.get(error.errno, "fix this, then repeat the same command")


def refused(error: OSError) -> str:
    """Return one line for a system error: the file if it is known, the reason and the remedy."""
    words = error.strerror or " ".join(str(error).split()) or type(error).__name__
    named = [str(p) for p in (error.filename, error.filename2) if isinstance(p, (str, Path))]
    of = f"cannot use {' as '.join(named)}: " if named else ""
    return f"{of}{words}; {remedy(error)}"


def unwritable(path: Path, error: OSError) -> UserError:
    """Return the error for a file that cannot be written, with the reason and the remedy."""
    return UserError(
        f"cannot write {path}: {error.strerror or error}; {remedy(error)}, or choose another folder "
        f"with run.outputs=PATH (for `vitsee plot`: work on a copy of this one). Everything saved so far is kept"
    )


def show_traceback(error: BaseException) -> None:
    """Print the traceback behind a message if the environment variable VITSEE_TRACEBACK is set."""
    if os.environ.get("VITSEE_TRACEBACK"):
        traceback.print_exception(error)


def expanded(path: str) -> Path:
    """Return the path with `~` replaced by the home folder. Raises UserError if that folder is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        whose = Path(path).parts[0]
        why = (
            "the environment variable HOME is not set"
            if whose == "~"
            else f"there is no user {whose[1:]}"
        )
        raise UserError(f"{path}: {why}; write the path in full") from error


def printable(message: str) -> str:
    """Return the message with control characters and line breaks escaped: file names may contain them."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in message
    )


class _Plain(logging.Formatter):
    """Formats a record as its message alone, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def speak_plainly(level: int = logging.INFO) -> None:
    """Log vitsee's messages to standard error, one per line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("vitsee").setLevel(level)
