"""The record in a comparison's folder, and the pairs that earlier comparisons contain."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitsee.comparing.measures import KeptModel
from vitsee.comparing.tables import COLUMNS, Pair, pairs_of
from vitsee.errors import UserError
from vitsee.io.files import content
from vitsee.results.folder import Results

NAME = "comparison.json"
VERSION = 1
"""Incremented when the numbers of comparisons change."""
MODEL = {"name": str, "digest": str, "result": str, "layers": [str]}
SHAPE = {
    **{"version": int, "question": {}, "models": [MODEL], "finished": bool, "sha256": str},
    **{"calibrated": bool, "first": (str, None), "dataset": str, "images": int, "minibatches": int},
}
"""The structure of a comparison.json."""
Key = tuple[str, str]
"""The digests of two models' files of Gram matrices."""


def load(folder: Path) -> dict[str, Any]:
    """Return the record of a comparison. Raises UserError if it is damaged or missing."""
    if not (folder / NAME).is_file():
        raise UserError(f"{folder} is not the folder of a comparison: it has no {NAME}")
    return Results(folder).load_json(NAME, SHAPE)


def about(models: Sequence[KeptModel]) -> list[dict[str, Any]]:
    """A record's entries for the models that are compared."""
    return [
        {
            "name": model.name,
            "digest": model.kept.digest,
            "result": str(model.kept.path.parent),
            "layers": model.layer_names,
        }
        for model in models
    ]


def digest(path: Path) -> str:
    return hashlib.sha256(content(path)).hexdigest()


def earlier(outputs: Path, question: Mapping[str, Any], wanted: set[Key]) -> dict[Key, Pair]:
    """Return the wanted pairs that comparisons with the same options contain, by their models' digests.

    Tables that have been edited are not used.
    """
    found: dict[Key, Pair] = {}
    for path in sorted(outputs.glob(f"compare/*/*/{NAME}")):
        try:
            record = load(path.parent)
            if record["version"] != VERSION or record["question"] != question:
                continue
            digests = {model["name"]: model["digest"] for model in record["models"]}
            keys = {(a, b) for a in digests.values() for b in digests.values()}
            if not (keys & wanted) - found.keys() - {(b, a) for a, b in found}:
                continue
            table = path.parent / "compare.csv"
            if digest(table) != record["sha256"]:
                continue
            rows = COLUMNS["compare"].read(table)
            layers = {model["name"]: model["layers"] for model in record["models"]}
            pairs = pairs_of(rows, layers)
        except (UserError, OSError, KeyError, ValueError):
            continue  # damaged in some way: these pairs are computed again
        for (model, other), pair in pairs.items():
            key = digests[model], digests[other]
            if key in wanted:
                found[key] = pair
            elif key[::-1] in wanted:
                found[key[::-1]] = pair.turned()
    return found
