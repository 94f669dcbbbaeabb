"""Numbers, sizes and names in words."""

from __future__ import annotations

import math
import re

from markupsafe import Markup

# ── words ─────────────────────────────────────────────────────────────────────────────────────────


def number(text: str) -> float | None:
    """The number that a cell holds; None if it holds none, or one that is not finite."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def short(value: float | None) -> str:
    """Three digits, as far as they say something."""
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
    """The name as text that a narrow column may break after `_`, `.`, `/` and `-`."""
    pieces = re.split(r"(?<=[_./-])", name)
    return Markup("<wbr>").join(pieces)
