"""Composed figures: the panels of a published figure, drawn from CSVs in the paper's layout."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import GridSpec

from vitsee.io.record import COMPOSED
from vitsee.io.tidy import Table, wrong
from vitsee.io.tidy import read as read_csv
from vitsee.parallel.interrupt import Interruptible
from vitsee.plotting import scorecard, style
from vitsee.results.folder import PNG, Formats, Results
from vitsee.results.reading import StoredResult, read

Read = Callable[[Path], StoredResult]
HEAD, FOOT_LINE, EMPTY = 0.42, 0.16, (3.0, 2.0)
"""Height in inches of a panel's title and of a caption line, and size of an empty panel."""


def draw(folder: Path, *, formats: Formats = PNG, read: Read = read) -> list[Path]:
    """Draw the composed figure of a folder with a figure.json; return the files written.

    read: the function that reads the results of its panels.
    """
    results = Results(folder)
    record = results.load_json("figure.json", COMPOSED)
    name = record["name"]
    if Path(name).name != name or name.startswith("."):  # no path out of the folder
        raise wrong(folder / "figure.json", f"{name!r} is not a file name")
    with Interruptible():  # matplotlib's callbacks would swallow a Ctrl-C
        drawn: dict[str, Figure] = {name: compose(record, folder, cache(read))}
        claims = claims_of(folder)
        if claims is not None:
            title = re.split(r"(?<!et al)\. ", record["caption"])[0]
            drawn["claims"] = scorecard.scorecard(claims, title)
        return results.save_figures(drawn, formats=formats)


CLAIMS = Table(
    {
        **dict.fromkeys(("claim", "figure", "statement", "statistic"), str),
        **dict.fromkeys(("value", "low", "high", "threshold", "untrained"), float),
        "holds": tuple(scorecard.VERDICTS),
    }
)
"""The columns of claims.csv."""


def claims_of(folder: Path) -> pd.DataFrame | None:
    """The claims of a composed figure, or None if it tests none."""
    path = folder / "claims.csv"
    if not path.exists() or read_csv(path).empty:
        return None
    return CLAIMS.read(path)


def draw_together(folders: list[Path], *, formats: Formats = PNG) -> list[Path]:
    """Write the claims of several composed figures as one scorecard into their common folder."""
    together = Results(Path(os.path.commonpath([path.resolve() for path in folders])))
    tables = [table for path in folders if (table := claims_of(path)) is not None]
    if not tables:
        return []
    claims = pd.concat(tables, ignore_index=True)
    claims = claims.drop_duplicates(["claim", "value"])
    title = f"Claims of {len(folders)} figures: " + ", ".join(
        f"{count} {verdict}" for verdict, count in claims["holds"].value_counts().items()
    )
    written = together.save_tables({"scorecard": claims})
    return written + together.save_figures(
        {"scorecard": scorecard.scorecard(claims, title)}, formats=formats
    )


def compose(record: dict[str, Any], folder: Path, read: Read) -> Figure:
    """Rows of titled panels, with the caption below."""
    rows = rows_of(record, folder)
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(layout="constrained")
        outer = tight_grid(figure, len(rows) + 1, 1)
        widths, heights = [], []
        for i, row in enumerate(rows):
            strip = figure.add_subfigure(outer[i])
            inner = tight_grid(strip, 1, len(row))
            cells = [strip.add_subfigure(inner[j]) for j in range(len(row))]
            grids = [tight_grid(cell, 2, 1) for cell in cells]
            sizes = [
                draw_panel(panel, folder, cell, grid, read)
                for panel, cell, grid in zip(row, cells, grids, strict=True)
            ]
            height = max(height for _, height in sizes)
            for grid in grids:
                grid.set_height_ratios([HEAD, height])
            inner.set_width_ratios([width for width, _ in sizes])
            widths.append(sum(width for width, _ in sizes))
            heights.append(HEAD + height)
        caption = textwrap.wrap(record["caption"], int(max(widths) * 15))
        foot = FOOT_LINE * len(caption) + 0.15
        below = figure.add_subfigure(outer[len(rows)])
        below.text(0.01, 0.95, "\n".join(caption), va="top", fontsize=7, color="0.3")
        outer.set_height_ratios([*heights, foot])
        figure.set_size_inches(max(widths), sum(heights) + foot)
    return figure


def rows_of(record: dict[str, Any], folder: Path) -> list[list[dict[str, Any]]]:
    """The panels in rows. Raises UserError if there are no rows, or they name an unknown panel."""
    panels = {panel["name"]: panel for panel in record["panels"]}
    if unknown := {name for row in record["rows"] for name in row} - panels.keys():
        raise wrong(
            folder / "figure.json", f"its rows name a panel {min(unknown)} that does not exist"
        )
    rows = [[panels[name] for name in row] for row in record["rows"] if row]
    if not rows:
        raise wrong(folder / "figure.json", "it has no rows of panels")
    return rows


def tight_grid(figure: Figure | SubFigure, rows: int, columns: int) -> GridSpec:
    """A grid without margins."""
    return GridSpec(rows, columns, figure, left=0, bottom=0, right=1, top=1)  # type: ignore[arg-type]


def draw_panel(
    panel: dict[str, Any], folder: Path, cell: SubFigure, grid: GridSpec, read: Read
) -> tuple[float, float]:
    """Draw the panel below its title, or why it is empty; return its size in inches without the title.

    grid: the rows of the cell, for title and panel.
    """
    head = cell.add_subfigure(grid[0])
    head.text(0.5, 0.5, panel["title"], ha="center", weight="bold", fontsize=10)
    head.text(0.5, 0.12, run_with(panel, folder, read), ha="center", fontsize=8, color="0.35")
    if not panel["results"]:
        why = "\n".join(line for text in panel["missing"] for line in textwrap.wrap(text, 40))
        body = cell.add_subfigure(grid[1])
        body.text(0.5, 0.5, why, ha="center", va="center", fontsize=8, color="0.35")
        return EMPTY
    sizes: dict[SubFigure, tuple[float, float]] = {}

    def place(size: tuple[float, float]) -> SubFigure:
        part = cell.add_subfigure(grid[1])
        sizes[part] = size
        return part

    with style.onto(place):
        figures = figures_of(panel, folder, read)
    if panel["figure"] not in figures:
        raise wrong(folder / "figure.json", f"{panel['analysis']} has no figure {panel['figure']}")
    shown: Any = figures[panel["figure"]]
    for part in sizes.keys() - {shown}:  # the analysis's other figures
        cell.subfigs.remove(part)
    return sizes[shown]


def run_with(panel: dict[str, Any], folder: Path, read: Read) -> str:
    """The models of a panel, which the paper's title does not name; nothing where a legend names many."""
    names: dict[str, None] = {}
    for result in panel["results"]:
        labels = read(folder / result).labels
        names[labels.model + (f" vs {labels.other}" if labels.other else "")] = None
    return ", ".join(names) if len(names) <= 2 else ""


def figures_of(panel: dict[str, Any], folder: Path, read: Read) -> dict[str, Figure]:
    """All figures drawn from the panel's results."""
    results = [read(folder / result) for result in panel["results"]]
    if len(results) == 1:
        return results[0].analysis.figures(results[0].tables, results[0].labels)
    return results[0].analysis.joined([(result.tables, result.labels) for result in results])
