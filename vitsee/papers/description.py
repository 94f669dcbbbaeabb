"""What a composed figure says about itself: figure.json, panels.csv and the caption."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vitsee import returned
from vitsee.errors import UserError
from vitsee.io.record import Shape
from vitsee.papers import atlas
from vitsee.papers.atlas import Published, Zoo
from vitsee.papers.evidence import Reader
from vitsee.papers.request import Request
from vitsee.results.folder import Results

log = logging.getLogger(__name__)

SHOWN: Shape = {"panels?": [{"name": str, "results": [str]}]}
"""The part of a figure.json that says which results the figure shows."""


@dataclass(frozen=True)
class Shown:
    """The result folders of a panel, and the reasons for missing ones."""

    folders: dict[str, Path]
    """By role."""
    missing: list[str]


def describe(
    figure: Published,
    zoo: Zoo,
    request: Request,
    shown: dict[str, Shown],
    folder: Path,
    reader: Reader,
) -> dict[str, Any]:
    """The contents of figure.json."""
    panels = [
        {
            "name": name,
            **asdict(panel),
            "results": [relative(path, folder) for path in shown[name].folders.values()],
            "missing": shown[name].missing,
        }
        for name, panel in figure.panels.items()
    ]
    return {
        "name": figure.name,
        "zoo": None if atlas.asks(figure) else zoo.name,
        "source": figure.source,
        "title": figure.title,
        "shows": figure.shows,
        "caption": caption(figure, zoo, shown, reader),
        "width": request.width,
        "captioned": request.captioned,
        "abreast": figure.abreast,
        "rows": figure.rows,
        "panels": panels,
    }


def tell_what_is_replaced(folder: Path, about: dict[str, Any]) -> None:
    """Log a warning if the figure that lies in this folder shows other results than the new one."""
    try:
        panels = Results(folder).load_json("figure.json", SHOWN).get("panels", [])
    except UserError:  # a damaged record is written anew
        return
    former = {panel["name"]: panel["results"] for panel in panels}
    new = {panel["name"]: panel["results"] for panel in about["panels"]}
    kept = {result for results in new.values() for result in results}
    before = dict.fromkeys(result for name in new if new[name] for result in former.get(name, []))
    if gone := [result for result in before if result not in kept]:
        log.warning(
            "warning: the figure in %s showed other results (%s), and is replaced; to keep both, use another "
            "run.outputs, or name a model of yours with model.name=NAME",
            folder,
            ", ".join(gone),
        )


def caption(figure: Published, zoo: Zoo, shown: dict[str, Shown], reader: Reader) -> str:
    """Source, models with their roles, data, the meaning of bands and marks, and the missing roles."""
    cast: dict[str, dict[str, dict[str, None]]] = {}
    explained: dict[str, None] = {}
    for name, panel in figure.panels.items():
        for role, path in shown[name].folders.items():
            result = reader(path)
            models = cast.setdefault(result.labels.data, {})
            models.setdefault(result.labels.model, {})[role] = None
            if result.labels.other and panel.other:
                models.setdefault(result.labels.other, {})[panel.other] = None
            words = returned.of(result.analysis, "caption", panel.figure, result.tables)
            explained[words] = None
    parts = [
        f"{data}: " + ", ".join(f"{model}{played(roles, zoo)}" for model, roles in models.items())
        for data, models in cast.items()
    ]
    sentences = [f"{figure.source}, with {cast_of(figure, zoo)}", "; ".join(parts), *explained]
    sentences += [f"Not shown: {absent}" for absent in [left_out(figure, zoo, shown)] if absent]
    return ". ".join(sentence.rstrip(".") for sentence in sentences if sentence) + "."


def played(roles: Iterable[str], zoo: Zoo) -> str:
    """The roles that a model plays, and how it differs from the paper's."""
    names = [role for role in roles if role not in atlas.ASKED]
    notes = list(dict.fromkeys(zoo.role(role).note for role in names if zoo.role(role).note))
    return (f" for {' and '.join(names)}" if names else "") + (
        f" ({'; '.join(notes)})" if notes else ""
    )


def left_out(figure: Published, zoo: Zoo, shown: dict[str, Shown]) -> str:
    """The roles and panels that are not shown, by reason; empty if all are."""
    reasons: dict[str, dict[str, None]] = {}
    for name, panel in figure.panels.items():
        cast = [role for role in (*panel.roles, panel.other) if role and role not in atlas.ASKED]
        absent = {role: zoo.role(role).missing for role in cast if zoo.role(role).model is None}
        for role, why in absent.items():
            reasons.setdefault(str(why), {})[role] = None
        if not absent and not shown[name].folders:
            reasons.setdefault("; ".join(shown[name].missing), {})[panel.title] = None
    return "; ".join(f"{', '.join(what)} ({why})" for why, what in reasons.items())


def cast_of(figure: Published, zoo: Zoo) -> str:
    """Where the models come from, for the caption."""
    roles = {role for panel in figure.panels.values() for role in panel.roles}
    return "the chosen models" if roles <= set(atlas.ASKED) else f"zoo={zoo.name}"


def listing(
    figure: Published, shown: dict[str, Shown], folder: Path, reader: Reader
) -> pd.DataFrame:
    """The rows of panels.csv."""
    rows = []
    for name, panel in figure.panels.items():
        for path in shown[name].folders.values():
            labels = reader(path).labels
            result = relative(path, folder)
            rows.append(
                (
                    *(name, panel.title, panel.analysis, labels.model, labels.other or ""),
                    *(labels.dataset, labels.images, result),
                )
            )
    columns = ["panel", "title", "analysis", "model", "other", "dataset", "images", "result"]
    return pd.DataFrame(rows, columns=columns)


def relative(path: Path, folder: Path) -> str:
    """Path of a result folder relative to the figure's folder, so that both can be moved together."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
