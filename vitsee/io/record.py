"""Schemas of made_with.json and figure.json, checked on reading because people edit these files."""

from __future__ import annotations

from typing import Any

Shape = Any
"""A type; a tuple of alternative shapes (None: null); [shape] for a list; {str: shape} for a mapping with any
names; {name: shape} for a mapping with these names (optional if they end with `?`), and perhaps others."""

LABELS: Shape = {
    "model": str,
    "other?": (str, None),
    "dataset": str,
    "images": int,
    "repeats?": int,
    "family?": (str, None),
    "train_images?": (int, None),
}
LAUNCH: Shape = {
    "device": str,
    "began": str,
    "images": int,
    "seconds": float,
    "waiting_share": float,
    "peak_memory_mb": float,
}
MADE_WITH: Shape = {
    "labels?": LABELS,
    "models?": {str: {"layers?": [str], "preprocessing?": {str: str}}},
    "passes?": [{"image_ids?": [str]}],
    "skipped_images?": [str],
    "warnings?": [str],
    "tolerance?": (
        {"asked": float, "largest_se": float, "minibatches": int, "of": int, "reached?": bool},
        None,
    ),
    "launches?": [{"device": str, "began": str}],
    "versions?": {str: str},
    "wall_seconds?": float,
    "images_per_second?": float,
    "peak_memory_mb?": float,
}
PANEL: Shape = {"title": str, "analysis": str, "results?": [str], "missing?": [str]}
FIGURE: Shape = {"name?": str, "zoo?": (str, None), "caption?": str, "panels?": [PANEL]}
"""The part of a figure.json that a report reads."""
COMPOSED: Shape = {
    "name": str,
    "caption": str,
    "width?": str,
    "captioned?": bool,
    "abreast?": int,
    "rows": [[str]],
    "panels": [
        PANEL
        | {"name": str, "figure": str, "results": [str], "missing": [str], "names_models?": bool}
    ],
}
"""The part of a figure.json that drawing needs."""

_KINDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    None: "null",
}


def misfit(value: Any, shape: Shape, place: str = "it") -> str | None:
    """Return where and how the value differs from the shape; None if it fits."""
    if isinstance(shape, tuple):
        misfits = [misfit(value, one, place) for one in shape]
        return None if None in misfits else misfits[0]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} is not a list"
        parts = [(f"{place}[{i}]", one, shape[0]) for i, one in enumerate(value)]
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{place} is not a mapping of names to values"
        within = "" if place == "it" else f"{place}."
        if str in shape:
            parts = [(f"{within}{name}", one, shape[str]) for name, one in value.items()]
        else:
            known = {name.rstrip("?"): (name, one) for name, one in shape.items()}
            for name, (written, _) in known.items():
                if written == name and name not in value:
                    return f"{within}{name} is missing"
            parts = [(f"{within}{n}", value[n], s) for n, (_, s) in known.items() if n in value]
    else:
        return None if _is(value, shape) else f"{place} is not {_KINDS[shape]}"
    return next((reason for at, one, s in parts if (reason := misfit(one, s, at))), None)


def _is(value: Any, kind: type | None) -> bool:
    if kind is None:
        return value is None
    if kind is float:
        return isinstance(value, float) or _is(value, int)
    if kind is int:  # True is an int in Python, and JSON allows integers of any length
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, kind)
