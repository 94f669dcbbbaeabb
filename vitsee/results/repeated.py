"""Merges warnings that differ only in numbered names, such as layers, and counts repeated ones."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_NUMBERED = re.compile(r"\S*\d\S*")
_NAMED = 3
"""Number of merged warnings whose names are listed."""


def said_once(warnings: Iterable[str]) -> list[str]:
    """Return the first warning of each kind, in order, with the number of others and the names in some of them.

    Warnings are of the same kind if they are equal except for words that contain a digit.
    """
    kinds: dict[str, list[str]] = {}
    for warning in warnings:
        kinds.setdefault(_NUMBERED.sub("0", warning), []).append(warning)
    return [first + _others(first, others) for first, *others in kinds.values()]


@contextmanager
def counted(log: logging.Logger) -> Iterator[None]:
    """Run the block with each warning to this logger shown only once; log the number of repetitions at the end."""
    said: Counter[str] = Counter()

    def is_new(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        said[record.getMessage()] += 1
        return said[record.getMessage()] == 1

    log.addFilter(is_new)
    try:
        yield
    finally:
        log.removeFilter(is_new)
        for message, count in said.items():
            if count > 1:
                log.warning("%s (%d times in all)", message, count)


def _others(first: str, others: list[str]) -> str:
    """The number of others, with the first differing word of some of them."""
    if not others:
        return ""
    names: dict[str, None] = {}
    for other in others:
        pairs = zip(first.split(), other.split(), strict=True)
        differing = [theirs.strip(",;:()") for ours, theirs in pairs if ours != theirs]
        names |= dict.fromkeys(differing[:1])
    shown = ", ".join([*names][:_NAMED]) + (" …" if len(names) > _NAMED else "")
    return f" (and {len(others)} more like this{': ' * bool(shown)}{shown})"
