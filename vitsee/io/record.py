"""The shape of made_with.json and figure.json, checked when they are read, because people edit and cut them."""

from __future__ import annotations

from typing import Any

Shape = Any
"""A type; a tuple of shapes, any of which will do (None: null); [shape] for a list; {str: shape} for a mapping
of any names; {name: shape} for these names, where one that ends with `?` may be missing. More may be there."""

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
FIGURE: Shape = {"name?": str, "zoo?": str, "caption?": str, "panels?": [PANEL]}
"""What a report reads of a figure.json."""
COMPOSED: Shape = {
    "name": str,
    "caption": str,
    "rows": [[str]],
    "panels": [PANEL | {"name": str, "figure": str, "results": [str], "missing": [str]}],
}
"""What drawing one needs."""

_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    None: "null",
}


def misfit(value: Any, shape: Shape, place: str = "it") -> str | None:
    """What about the value has not this shape, in words; None if it fits."""
    if isinstance(shape, tuple):
        found = [misfit(value, one, place) for one in shape]
        return None if None in found else found[0]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} is no list"
        parts = [(f"{place}[{i}]", one, shape[0]) for i, one in enumerate(value)]
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{place} is no mapping of names to values"
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
        return None if _is(value, shape) else f"{place} is not {_WORDS[shape]}"
    return next((words for at, one, s in parts if (words := misfit(one, s, at))), None)


def _is(value: Any, kind: type | None) -> bool:
    if kind is None:
        return value is None
    if kind is float:
        return isinstance(value, float) or _is(value, int)
    if kind is int:  # of which True is one, and which JSON lets be of any length
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, kind)
