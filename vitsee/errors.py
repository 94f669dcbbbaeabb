"""Errors that are the user's to fix; the command line shows their message and no traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something asked for cannot be done; the message says what can. Exit code 2."""


class Incomplete(UserError):
    """A result was asked for before every minibatch was counted exactly once. Exit code 3."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """` Did you mean x?`, or nothing if no valid word is near."""
    close = get_close_matches(word, list(valid), 1)
    return f" Did you mean {close[0]}?" if close else ""


def unknown(problem: str, word: str, valid: Iterable[str], lead: str) -> UserError:
    """What was asked, what exists, the nearest match."""
    names = sorted(valid)
    return UserError(f"{problem}; {lead}: {', '.join(names)}.{nearest(word, names)}")
