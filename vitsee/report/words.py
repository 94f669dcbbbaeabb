"""Formats numbers, sizes, durations and names as text."""

from __future__ import annotations

import math
import re

from markupsafe import Markup

# ── words ─────────────────────────────────────────────────────────────────────────────────────────


def number(text: str) -> float | None:
    """Return the number in a cell; None if the cell does not contain a finite number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def short(value: float | None) -> str:
    """Return the value with three significant digits, or as a whole number from 1000 to a million."""
    if value is None:
        return "–"
    words = f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return words.replace("-", "−")


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def bytes_in_words(size: int) -> str:
    return f"{size / 2**20:.1f} MB" if size >= 2**20 else f"{max(1, round(size / 2**10))} kB"


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def uncramped(name: str) -> Markup:
    """Return the name with allowed line breaks after `_`, `.`, `/` and `-`, for narrow columns."""
    pieces = re.split(r"(?<=[_./-])", name)
    return Markup("<wbr>").join(pieces)
