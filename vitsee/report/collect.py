"""Collects the contents of a report: results, composed figures and claims in folders."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from vitsee.comparing import record as comparisons
from vitsee.errors import UserError, refused, unknown
from vitsee.io import plain, tidy
from vitsee.io.files import visible
from vitsee.io.record import FIGURE, MADE_WITH, Shape
from vitsee.io.tidy import wrong
from vitsee.results.folder import Results

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedResult:
    """A finished result folder."""

    path: Path
    experiment: dict[str, Any]
    made_with: dict[str, Any]

    @property
    def analysis(self) -> str:
        return str(self.experiment["analysis"]["name"])

    @property
    def images(self) -> list[Path]:
        return visible(self.path, ".png")

    @property
    def tables(self) -> list[Path]:
        return visible(self.path, ".csv")

    @property
    def records(self) -> list[Path]:
        return [self.path / name for name in ("experiment.yaml", "made_with.json")]


@dataclass(frozen=True)
class PanelResult:
    """A panel of a composed figure and one of its results.

    named: the result's folder as named by the figure. result: the folder's path; None if it does not exist.
    missing: why no result can exist, if the figure gives a reason.
    """

    title: str
    analysis: str
    named: str
    result: Path | None
    missing: str = ""


@dataclass(frozen=True)
class Composed:
    """A composed figure, as described by its folder.

    claims: the rows of its claims.csv. apart: whether another figure has its name and its models, so that the folder of
    its results has to be named.
    """

    path: Path
    about: dict[str, Any]
    panels: list[PanelResult]
    claims: list[dict[str, Any]] = field(default_factory=list)
    apart: bool = False

    @property
    def name(self) -> str:
        return str(self.about.get("name") or self.path.name.rpartition("-")[0] or self.path.name)

    @property
    def zoo(self) -> str | None:
        """The zoo of its models, or None if the user chose them."""
        return self.about.get("zoo", self.path.name.rpartition("-")[2])

    @property
    def cast(self) -> str:
        """The zoo, or the chosen models."""
        chosen = self.path.name.removeprefix(f"{self.name}-").replace("-vs-", " and ")
        cast = f"zoo {self.zoo}" if self.zoo else chosen
        return f"{cast}, in {self.path.parent.parent}" if self.apart else cast

    @property
    def image(self) -> Path | None:
        path = self.path / f"{Path(self.name).name}.png"
        return path if path.is_file() else None

    @property
    def tables(self) -> list[Path]:
        paths = (self.path / name for name in ("panels.csv", "claims.csv"))
        return [path for path in paths if path.is_file()]


@dataclass
class Contents:
    """Everything that a page shows, and messages about unreadable files."""

    results: list[FinishedResult] = field(default_factory=list)
    figures: list[Composed] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def collect(paths: list[Path]) -> Contents:
    """Read everything in these folders, and the results shown by their figures.

    Raises UserError if a folder does not exist, or if none of them has anything to show.
    """
    contents, seen = Contents(), set[Path]()
    for path in paths:
        if not path.is_dir():
            raise _no_folder(path)
        for folder in _folders(path, contents):
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                _read_into(contents, folder)
    shown = [panel.result for one in contents.figures for panel in one.panels if panel.result]
    for folder in shown:
        if folder.resolve() not in seen:
            seen.add(folder.resolve())
            _read_into(contents, folder)
    contents.results.sort(key=lambda one: (one.analysis, *_natural(str(one.path))))
    _tell_apart(contents)
    if not (contents.results or contents.figures or contents.claims or contents.comparisons):
        raise _nothing(paths, contents)
    contents.figures.sort(key=lambda one: (one.cast, *_papers(one.name), *_natural(one.name)))
    return contents


def _tell_apart(contents: Contents) -> None:
    """Name the folder of figures that share their names and models, and list the claims of all figures."""
    count = Counter((one.name, one.cast) for one in contents.figures)
    contents.figures = [
        replace(one, apart=count[one.name, one.cast] > 1) for one in contents.figures
    ]
    for one in contents.figures:
        for claim in ({"cast": one.cast} | claim for claim in one.claims):
            if claim not in contents.claims:  # several figures may test the same claim
                contents.claims.append(claim)
    contents.figures = [one for one in contents.figures if one.about or one.panels or one.image]


def _folders(root: Path, contents: Contents) -> Iterator[Path]:
    """Yield the folders of results, comparisons and figures at or below a folder.

    Folders that cannot be listed are noted.
    """
    for where, below, files in os.walk(root, onerror=lambda e: contents.damaged.append(refused(e))):
        below.sort()
        below[:] = [name for name in below if not name.startswith(".")]
        if {"experiment.yaml", comparisons.NAME} & {*files} or _describes_figure(
            Path(where), files
        ):
            below.clear()
            yield Path(where)


def _describes_figure(folder: Path, files: list[str]) -> bool:
    return bool({"figure.json", "panels.csv", "claims.csv"} & set(files)) or (
        folder.parent.name == "figures" and any(name.endswith(".png") for name in files)
    )


def _read_into(contents: Contents, folder: Path) -> None:
    """Add the content of a folder. A file that cannot be read is noted and does not affect the others."""

    def readable(name: str, read: Callable[[Path], Any]) -> Any:
        try:
            return read(folder / name) if (folder / name).exists() else None
        except OSError as error:
            contents.damaged.append(refused(error))
        except UserError as error:
            contents.damaged.append(str(error))
        return None

    if (folder / comparisons.NAME).exists():
        if about := readable(comparisons.NAME, lambda path: comparisons.load(path.parent)):
            (contents.comparisons if about["finished"] else contents.unfinished).append(folder)
        return
    if (folder / "experiment.yaml").exists():
        experiment = readable("experiment.yaml", _experiment)
        made_with = readable("made_with.json", partial(_record, shape=MADE_WITH))
        if not (folder / "made_with.json").exists():
            contents.unfinished.append(folder)
        elif experiment is not None and made_with is not None:
            contents.results.append(FinishedResult(folder, experiment, made_with))
        return
    about = readable("figure.json", partial(_record, shape=FIGURE)) or {}
    panels = _planned(folder, about) or readable("panels.csv", _measured) or []
    claims = readable("claims.csv", _rows) or []
    contents.figures.append(Composed(folder, about, panels, claims))


def _planned(folder: Path, about: dict[str, Any]) -> list[PanelResult]:
    """Return the panels of a figure.json, one entry per result that a panel shows or cannot show."""
    panels = []
    for each in about.get("panels", []):
        heading, reasons = (each["title"], each["analysis"]), each.get("missing") or []
        named = each.get("results") or ([] if reasons else [""])
        panels += [PanelResult(*heading, name, _existing(folder, name)) for name in named]
        panels += [PanelResult(*heading, "", None, reason) for reason in reasons]
    return panels


def _measured(path: Path) -> list[PanelResult]:
    """Return the panels of a panels.csv."""
    rows = _rows(path)
    if lacking := {"panel", "title", "analysis", "result"} - (rows[0].keys() if rows else set()):
        raise wrong(path, f"it has no column {min(lacking)}" if rows else "it has no rows")
    return [
        PanelResult(
            row["title"] or row["panel"], row["analysis"], name, _existing(path.parent, name)
        )
        for row in rows
        for name in [row["result"]]
    ]


def _existing(folder: Path, name: str) -> Path | None:
    """Return the path of a result folder named relative to the figure's folder or to the outputs folder."""
    for base in (folder, folder.parents[1] if len(folder.parents) > 1 else folder, Path()):
        with suppress(OSError):
            if name and (base / name / "experiment.yaml").is_file():
                return base / name
    return None


def _experiment(path: Path) -> dict[str, Any]:
    stored = plain.read(path)
    plain.analysis_of(stored, path)
    return stored


def _record(path: Path, shape: Shape) -> dict[str, Any]:
    return Results(path.parent).load_json(path.name, shape)


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a small table, every cell as text."""
    table = tidy.as_written(path)
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _papers(name: str) -> tuple[bool, bool]:
    """Return a sorting key that puts the figures of Raghu et al. first, then those of the ViT paper."""
    return not name.startswith("fig"), not name.startswith("vit_")


def _natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Return a sorting key that puts fig2 before fig10."""
    parts = re.split(r"(\d+)", name)
    return tuple((part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)


def _no_folder(path: Path) -> UserError:
    if path.is_file():
        return UserError(f"{path} is a file; vitsee report takes folders, such as {path.parent}")
    above = next((up for up in path.parents if up.is_dir()), Path())
    beside = [str(above / each.name) for each in above.iterdir() if each.is_dir()]
    beside = [each for each in beside if not Path(each).name.startswith(".")][:20]
    if path == Path("outputs"):
        return UserError(
            "there is no folder outputs here; `vitsee run` creates one, or give the folder of your results: "
            "vitsee report PATH"
        )
    if not beside:
        return UserError(f"there is no folder {path}, and no folder in {above.resolve()}")
    return unknown(f"there is no folder {path}", str(path), beside, "existing folders")


def _nothing(paths: list[Path], contents: Contents) -> UserError:
    where = ", ".join(map(str, paths))
    if contents.damaged:
        return UserError(f"nothing in {where} can be read: {'; '.join(contents.damaged[:3])}")
    if contents.unfinished:
        first = contents.unfinished[0]
        return UserError(
            f"no result in {where} is finished ({len(contents.unfinished)} unfinished); resume with the same "
            f"`vitsee run`, or with: vitsee run --from {first / 'experiment.yaml'}"
        )
    there = sorted(each.name for path in paths for each in path.iterdir())[:10]
    return UserError(
        f"there are no results in {where} (it contains: {', '.join(there) or 'nothing'}); `vitsee run` writes "
        f"them to outputs/<analysis>/<models>/<dataset>-<identity>"
    )
