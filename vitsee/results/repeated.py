"""Warnings that differ only in names with numbers, such as those of layers, said once with their count."""

from __future__ import annotations

import re
from collections.abc import Iterable

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
