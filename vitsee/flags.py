"""Flags that take a value and may stand anywhere on a command line: `--import FILE`, `--config-dir DIR`."""

from __future__ import annotations

from vitsee.errors import UserError


def taken(words: list[str], *flags: str, needs: str) -> tuple[list[str], list[str]]:
    """Return the values given to a flag, by any of its names, and the other words.

    needs: what the value is, with an example. Raises UserError if it is missing.
    """
    values, rest, ahead = [], [], iter(words)
    for word in ahead:
        flag, given, value = word.partition("=")
        if flag not in flags:
            rest.append(word)
            continue
        value = value if given else next(ahead, "")
        if not value:
            raise UserError(f"{flag} needs {needs}")
        values.append(value)
    return values, rest
