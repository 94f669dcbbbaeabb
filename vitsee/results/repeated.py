"""Warnings that differ only in names with numbers, such as those of layers, said once with their count."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_NUMBERED = re.compile(r"\S*\d\S*")
_NAMED = 3
"""How many of the others are named."""


def said_once(warnings: Iterable[str]) -> list[str]:
    """Return the first warning of each kind, in order, with the number of others and what tells some apart.

    Warnings are of one kind if they are equal but for words that hold a digit.
    """
    kinds: dict[str, list[str]] = {}
    for warning in warnings:
        kinds.setdefault(_NUMBERED.sub("0", warning), []).append(warning)
    return [first + _others(first, others) for first, *others in kinds.values()]


@contextmanager
def counted(log: logging.Logger) -> Iterator[None]:
    """Within this block, equal warnings to this logger are said when they first come, and counted at the end."""
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
    """How many others there are, with the word of some that is the first to differ."""
    if not others:
        return ""
    names: dict[str, None] = {}
    for other in others:
        pairs = zip(first.split(), other.split(), strict=True)
        differing = [theirs.strip(",;:()") for ours, theirs in pairs if ours != theirs]
        names |= dict.fromkeys(differing[:1])
    shown = ", ".join([*names][:_NAMED]) + (" …" if len(names) > _NAMED else "")
    return f" (and {len(others)} more like this{': ' * bool(shown)}{shown})"
