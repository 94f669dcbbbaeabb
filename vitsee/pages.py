"""The page of a report: what the template shows, as text, data URIs and compact numbers. Imports no torch."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

import vitsee.analyses  # noqa: F401  (registers every analysis)
from vitsee import __version__, tidy
from vitsee.analysis import REGISTERED, Labels
from vitsee.errors import UserError
from vitsee.report import Composed, Found, Result

EMBED = 2 * 2**20
"""Bytes; a larger table is linked instead of carried along."""
PIXELS_PER_INCH = 200 / 96
"""Of a figure's PNG, per CSS inch of 96 pixels."""
VERDICTS = {"holds": "✓", "does not hold": "✗", "undecided": "?", "not measured": "–"}


@dataclass(frozen=True)
class Map:
    """Which columns of a table are a map of pairs, and how its values are coloured."""

    x: str
    y: str
    value: str
    error: str
    label: str
    limits: tuple[float, float]


MAPS = {"cka": Map("other_layer", "model_layer", "cka", "se", "CKA", (0, 1))}
"""Tables that the page shows as maps with the value under the pointer; others are shown as drawn."""


def page(found: Found, home: Path) -> str:
    """The HTML of everything found; home: the folder that it will lie in, for what it must link."""
    environment = Environment(
        loader=PackageLoader("vitsee"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["uncramped"] = uncramped
    assert environment.loader is not None
    style, script = (
        environment.loader.get_source(environment, f"report.{kind}")[0] for kind in ("css", "js")
    )
    files, names = Files(home, found.damaged), Names()
    anchors = {one.path.resolve(): names.anchor(one.path.parts[-3:]) for one in found.results}
    results = [show_result(one, files, anchors[one.path.resolve()]) for one in found.results]
    titles = {result["anchor"]: result["title"] for result in results}
    claims = [show_claim(claim) for claim in found.claims]
    figures = [
        show_composed(one, files, names.anchor(one.path.parts[-1:]), claims, anchors, titles)
        for one in found.figures
    ]
    at = {(figure["name"], figure["zoo"]): figure["anchor"] for figure in figures}
    for claim in claims:
        claim["anchor"] = at.get((claim["figure"], claim["zoo"]))
    return environment.get_template("report.html").render(
        style=Markup(style),
        script=Markup(script),
        style_hash=integrity(style),
        script_hash=integrity(script),
        palette=palette(),
        scorecards=scorecards(claims),
        figures=figures,
        analyses=by_analysis(results),
        overview=overview(found),
        unfinished=[str(path) for path in found.unfinished],
        damaged=found.damaged,
        version=__version__,
    )


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Files:
    """Files as the page carries them. home: the page's folder; damaged: what could not be read, and why."""

    home: Path
    damaged: list[str]

    def download(self, path: Path) -> dict[str, Any]:
        """A link that saves the file: its bytes if it is small, its place if it is large."""
        size = path.stat().st_size
        embedded = size <= EMBED
        place = Path(os.path.relpath(path, self.home)).as_posix()
        href = data_uri(path, "text/plain;charset=utf-8") if embedded else quote(place)
        shown = {"name": path.name, "href": href, "embedded": embedded, "place": place}
        return shown | {"size": bytes_in_words(size)}

    def table(self, path: Path) -> dict[str, Any]:
        """The link to a CSV, and what is in it."""
        try:
            read = tidy.as_written(path)
        except UserError as error:
            self.damaged.append(str(error))
            return self.download(path) | {"rows": None, "columns": []}
        return self.download(path) | {"rows": len(read), "columns": [str(c) for c in read.columns]}

    def image(self, path: Path) -> dict[str, Any] | None:
        """A PNG and its size on the page; None, and a note, if it cannot be read."""
        try:
            with Image.open(path, formats=["PNG"]) as picture:
                picture.verify()
                width, height = (round(side / PIXELS_PER_INCH) for side in picture.size)
        except Exception as error:  # a damaged image makes decoders raise anything
            self.damaged.append(f"{path}: {first_line(error)}")
            return None
        return {"uri": data_uri(path, "image/png"), "width": width, "height": height}


def data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def packed(values: np.ndarray) -> str:
    """Numbers as base64 of little-endian float32."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def palette() -> str:
    """Colours of the maps, those of the drawn heatmaps: base64 of 256 times red, green, blue."""
    colours = matplotlib.colormaps["magma"](np.arange(256), bytes=True)[:, :3]
    return base64.b64encode(np.ascontiguousarray(colours).tobytes()).decode()


def integrity(text: str) -> str:
    """The hash by which the page's security policy allows this script or style, and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


class Names:
    """Anchors of the page: readable, harmless, each given once."""

    def __init__(self) -> None:
        self._given: Counter[str] = Counter()

    def anchor(self, words: Iterable[str]) -> str:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(words)).strip("-") or "part"
        self._given[name] += 1
        return name if self._given[name] == 1 else f"{name}--{self._given[name]}"


# ── results ───────────────────────────────────────────────────────────────────────────────────────


def show_result(result: Result, files: Files, anchor: str) -> dict[str, Any]:
    """What the template needs of a result folder."""
    labels, made = label(result), result.made_with
    tables = {path.stem: path for path in result.tables}
    drawn = {path.stem: path for path in result.images}
    names = list(drawn) + [name for name in tables if name in MAPS and name not in drawn]
    figures = []
    for name in names:
        image = files.image(drawn[name]) if name in drawn else None
        cells = (
            heat_map(tables[name], MAPS[name], labels) if {name} <= {*tables} & {*MAPS} else None
        )
        if image or cells:
            figures.append({"name": name, "image": image, "map": cells})
    return {
        "anchor": anchor,
        "analysis": result.analysis,
        "title": models(labels),
        "data": labels.data,
        "path": str(result.path),
        "identity": str(made.get("identity", "")),
        "warnings": [str(warning) for warning in made.get("warnings", [])],
        "figures": figures,
        "tables": [files.table(path) for path in tables.values()],
        "parameters": parameters(result.experiment),
        "provenance": provenance(made),
        "files": [files.download(result.path / n) for n in ("experiment.yaml", "made_with.json")],
    }


def label(result: Result) -> Labels:
    """How the result's figures call what was measured; by its folders if the record does not say."""
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


def heat_map(path: Path, spec: Map, labels: Labels) -> dict[str, Any] | None:
    """The cells of a table of pairs, rows from bottom to top; None if it is not one value a pair."""
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
    except (KeyError, ValueError):  # the table's own link names what is wrong with it
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
    """Every option that has a value, by its name on the command line."""
    found = []
    for key, value in experiment.items():
        if isinstance(value, Mapping):
            found += parameters(value, f"{prefix}{key}.")
        elif value is not None and value != []:
            words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            found.append((f"{prefix}{key}", words))
    return found


def provenance(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reader wants to know of how the numbers came about, in words."""
    found = []
    for role, model in (made.get("models") or {}).items():
        layers = len(model.get("layers", []))
        found.append((role, f"{model.get('timm')}, {model.get('weights')}, {layers} layers"))
        found.append((f"{role}, digest", str(model.get("digest"))))
        seen = ", ".join(f"{key} {value}" for key, value in model.get("preprocessing", {}).items())
        found.append((f"{role}, input", seen))
    for number, each in enumerate(made.get("passes") or [], start=1):
        ids = each.get("image_ids") or []
        within = f", from {ids[0]} to {ids[-1]}" if ids else ""
        name = f"images of pass {number}" if len(made["passes"]) > 1 else "images"
        found.append((name, f"{len(ids):,}{within}; fingerprint {each.get('fingerprint')}"))
    if skipped := made.get("skipped_images"):
        found.append(
            ("left out", f"{len(skipped)} images that could not be decoded: {skipped[0]} …")
        )
    if stop := made.get("tolerance"):
        reached = "reached" if stop.get("reached") else "not reached"
        words = "{minibatches} of {of} minibatches, largest standard error {largest_se:.2g}"
        found.append(("tolerance", f"{stop['asked']} {reached}: {words.format(**stop)}"))
    if launches := made.get("launches"):
        devices = ", ".join(dict.fromkeys(str(launch["device"]) for launch in launches))
        began = min(str(launch["began"]) for launch in launches)
        speed = f"{made.get('images_per_second', 0):.0f} images a second"
        memory = f"{made.get('peak_memory_mb', 0):,.0f} MB at most"
        times = f"{len(launches)} launches, " if len(launches) > 1 else ""
        spent = duration(made.get("wall_seconds", 0))
        found.append(("measured", f"{began} on {devices}; {times}{spent}, {speed}, {memory}"))
    versions = ", ".join(f"{name} {it}" for name, it in (made.get("versions") or {}).items())
    commit = f" (commit {made['git_commit']})" if made.get("git_commit") else ""
    return [*found, ("software", versions + commit)]


def by_analysis(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results under the analysis that made them, with the question that it answers."""
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
    """What an analysis answers: the first paragraph of its description."""
    words = REGISTERED[analysis].__doc__ if analysis in REGISTERED else None
    return " ".join((words or "").split("\n\n")[0].split())


# ── figures and claims ────────────────────────────────────────────────────────────────────────────


def show_composed(
    one: Composed,
    files: Files,
    anchor: str,
    claims: list[dict[str, Any]],
    anchors: Mapping[Path, str],
    titles: Mapping[str, str],
) -> dict[str, Any]:
    """What the template needs of a composed figure; a panel without a result says so."""
    panels = []
    for panel in one.panels:
        at = anchors.get(panel.result.resolve()) if panel.result else None
        shown = titles[at] if at else None
        panels.append(
            {
                "title": panel.title,
                "analysis": panel.analysis,
                "anchor": at,
                "shown": shown,
                "named": panel.named,
                "begun": panel.result is not None,
                "missing": panel.missing,
            }
        )
    told = {key: str(one.about.get(key) or "") for key in ("title", "source", "shows", "caption")}
    tables = [one.path / name for name in ("panels.csv", "claims.csv")]
    return told | {
        "anchor": anchor,
        "name": one.name,
        "zoo": one.zoo,
        "image": files.image(one.image) if one.image else None,
        "path": str(one.path),
        "panels": panels,
        "waiting": sum(not (panel["anchor"] or panel["missing"]) for panel in panels),
        "tables": [files.table(path) for path in tables if path.is_file()],
        "claims": [c for c in claims if (c["figure"], c["zoo"]) == (one.name, one.zoo)],
    }


def show_claim(claim: Mapping[str, str]) -> dict[str, Any]:
    """One row of the scorecard: words, numbers, and the interval as a drawing."""
    told = {key: claim.get(key, "") for key in ("claim", "zoo", "figure", "statement", "statistic")}
    value, low, high, threshold = (
        number(claim.get(key, "")) for key in ("value", "low", "high", "threshold")
    )
    interval = f"{short(low)} to {short(high)}" if low is not None and high is not None else ""
    verdict = claim.get("holds", "") or "not measured"
    return told | {
        "verdict": verdict,
        "mark": VERDICTS.get(verdict, "·"),
        "kind": verdict.replace(" ", "-") if verdict in VERDICTS else "other",
        "value": short(value),
        "interval": interval,
        "threshold": claim.get("threshold", "") if threshold is None else short(threshold),
        "strip": strip(value, low, high, threshold),
    }


def strip(*numbers: float | None) -> dict[str, float] | None:
    """Where (0 to 100) value, low, high and threshold lie on a line that holds all of them."""
    known = [each for each in numbers if each is not None]
    if len(known) < len(numbers) or min(known) == max(known):
        return None
    least, span = min(known), max(known) - min(known)
    places = (4 + 92 * (each - least) / span for each in known)
    return dict(zip(("value", "low", "high", "threshold"), places, strict=True))


def scorecards(claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims of each zoo, with how many of each verdict there are."""
    cards = []
    for zoo in dict.fromkeys(claim["zoo"] for claim in claims):
        own = [claim for claim in claims if claim["zoo"] == zoo]
        count = Counter((claim["verdict"], claim["kind"], claim["mark"]) for claim in own)
        order = sorted(count, key=lambda each: [*VERDICTS, each[0]].index(each[0]))
        tally = [{"verdict": v, "kind": k, "mark": m, "count": count[v, k, m]} for v, k, m in order]
        cards.append({"zoo": zoo, "claims": own, "tally": tally})
    return cards


def overview(found: Found) -> dict[str, Any]:
    """What the page is about in a few lists: models, data sets, when it was measured."""
    labels = [label(result) for result in found.results]
    named = [name for each in labels for name in (each.model, each.other) if name]
    began = [
        str(launch.get("began", ""))[:10]
        for result in found.results
        for launch in result.made_with.get("launches") or []
    ]
    return {
        "models": list(dict.fromkeys(named)),
        "datasets": list(dict.fromkeys(each.dataset for each in labels if each.images)),
        "results": len(found.results),
        "figures": len(found.figures),
        "claims": len(found.claims),
        "began": min(began, default=""),
        "ended": max(began, default=""),
    }


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
