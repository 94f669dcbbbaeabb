"""Prepares results for a report's template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import vitsee.analyses  # noqa: F401  (registers every analysis)
from vitsee.analysis import REGISTERED, Labels
from vitsee.io import tidy
from vitsee.report.assets import PageFiles, packed
from vitsee.report.collect import FinishedResult
from vitsee.report.words import duration
from vitsee.results.repeated import said_once


@dataclass(frozen=True)
class PairMap:
    """The columns of a table that form a map of pairs of layers, and the limits of its colours."""

    x: str
    y: str
    value: str
    error: str
    label: str
    limits: tuple[float, float]


MAPS = {"cka": PairMap("other_layer", "model_layer", "cka", "se", "CKA", (0, 1))}
"""Tables that the page shows as interactive maps. For others it shows the drawn figure."""


# ── results ───────────────────────────────────────────────────────────────────────────────────────


def show_result(result: FinishedResult, files: PageFiles, anchor: str) -> dict[str, Any]:
    """Return the template's data for a result folder."""
    labels, made = label(result), result.made_with
    tables = {path.stem: path for path in result.tables}
    drawn = {path.stem: path for path in result.images}
    names = list(drawn) + [name for name in tables if name in MAPS and name not in drawn]
    figures = []
    for name in names:
        image = files.image(drawn[name]) if name in drawn else None
        mapped = name in tables and name in MAPS
        cells = files.fit(heat_map(tables[name], MAPS[name], labels)) if mapped else None
        if image or cells:
            figures.append({"name": name, "image": image, "map": cells})
    return {
        "anchor": anchor,
        "analysis": result.analysis,
        "title": models(labels),
        "data": labels.data,
        "path": str(result.path),
        "identity": str(made.get("identity", "")),
        "warnings": said_once(str(warning) for warning in made.get("warnings", [])),
        "figures": figures,
        "tables": [files.table(path) for path in tables.values()],
        "parameters": parameters(result.experiment),
        "provenance": provenance(made),
        "files": [files.download(path) for path in result.records],
    }


def label(result: FinishedResult) -> Labels:
    """Return the labels of the result's figures, from folder names if made_with.json lacks them."""
    known = result.made_with.get("labels") or {}
    model, _, other = result.path.parent.name.partition("-vs-")
    return Labels(
        model=str(known.get("model") or model),
        other=str(known.get("other") or other) or None,
        dataset=str(known.get("dataset") or result.path.name),
        images=int(known.get("images") or 0),
        repeats=int(known.get("repeats") or 1),
    )


def models(labels: Labels) -> str:
    return f"{labels.model} vs {labels.other}" if labels.other else labels.model


def heat_map(path: Path, spec: PairMap, labels: Labels) -> dict[str, Any] | None:
    """Return the cells of a table of pairs, rows from bottom to top; None unless it has one value per pair."""
    try:
        table = tidy.as_written(path)
        rows, columns = table[spec.y].unique(), table[spec.x].unique()
        if len(table) != len(rows) * len(columns) or len(table) < 4:
            return None
        numbers = {
            name: pd.to_numeric(table[name], errors="coerce") for name in (spec.value, spec.error)
        }
        grids = [
            table.assign(number=column)
            .pivot(index=spec.y, columns=spec.x, values="number")
            .loc[rows, columns]
            .to_numpy(float)
            for column in numbers.values()
        ]
    except (KeyError, ValueError):  # the table's own link reports the problem
        return None
    return asdict(spec) | {
        "columns": list(columns),
        "rows": list(rows),
        "across": labels.other or labels.model,
        "up": labels.model,
        "values": packed(grids[0]),
        "errors": packed(grids[1]),
    }


def parameters(experiment: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return every option that has a value, named as on the command line."""
    rows = []
    for key, value in experiment.items():
        if isinstance(value, Mapping):
            rows += parameters(value, f"{prefix}{key}.")
        elif value is not None and value != []:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((f"{prefix}{key}", text))
    return rows


def provenance(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the provenance of a result as rows of name and text."""
    rows = []
    for role, model in (made.get("models") or {}).items():
        layers = len(model.get("layers", []))
        named = model.get("timm") or f"{model.get('source')} {model.get('id')}"
        rows.append((role, f"{named}, {model.get('weights')}, {layers} layers"))
        rows.append((f"{role}, digest", str(model.get("digest"))))
        seen = ", ".join(f"{key} {value}" for key, value in model.get("preprocessing", {}).items())
        rows.append((f"{role}, input", seen))
    for number, each in enumerate(made.get("passes") or [], start=1):
        ids = each.get("image_ids") or []
        within = f", from {ids[0]} to {ids[-1]}" if ids else ""
        name = f"images of pass {number}" if len(made["passes"]) > 1 else "images"
        rows.append((name, f"{len(ids):,}{within}; fingerprint {each.get('fingerprint')}"))
    if skipped := made.get("skipped_images"):
        rows.append(("skipped", f"{len(skipped)} images that could not be decoded: {skipped[0]} …"))
    if stop := made.get("tolerance"):
        reached = "reached" if stop.get("reached") else "not reached"
        words = "{minibatches} of {of} minibatches, largest standard error {largest_se:.2g}"
        rows.append(("tolerance", f"{stop['asked']} {reached}: {words.format(**stop)}"))
    if launches := made.get("launches"):
        devices = ", ".join(dict.fromkeys(str(launch["device"]) for launch in launches))
        began = min(str(launch["began"]) for launch in launches)
        speed = f"{made.get('images_per_second', 0):.0f} images per second"
        memory = f"peak memory {made.get('peak_memory_mb', 0):,.0f} MB"
        times = f"{len(launches)} launches, " if len(launches) > 1 else ""
        spent = duration(made.get("wall_seconds", 0))
        rows.append(("measured", f"{began} on {devices}; {times}{spent}, {speed}, {memory}"))
    versions = ", ".join(f"{name} {it}" for name, it in (made.get("versions") or {}).items())
    commit = f" (commit {made['git_commit']})" if made.get("git_commit") else ""
    return [*rows, ("software", versions + commit)]


def by_analysis(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Group the results by analysis, with the question that each analysis answers."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["analysis"], []).append(result)
    return [
        {
            "name": name,
            "anchor": f"analysis-{re.sub(r'[^A-Za-z0-9_]+', '-', name)}",
            "question": question(name),
            "results": group,
        }
        for name, group in groups.items()
    ]


def question(analysis: str) -> str:
    """Return the question that an analysis answers: the first paragraph of its docstring."""
    words = REGISTERED[analysis].__doc__ if analysis in REGISTERED else None
    return " ".join((words or "").split("\n\n")[0].split())
