"""Composed figures: the panels of a published figure, drawn from their results' CSVs, in the paper's order."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from vitsee.io.record import COMPOSED
from vitsee.io.tidy import Table, wrong
from vitsee.io.tidy import read as read_csv
from vitsee.parallel.interrupt import Interruptible
from vitsee.plotting import scorecard, style
from vitsee.results.folder import Results
from vitsee.results.reading import read

HEAD, FOOT_LINE, EMPTY = 0.3, 0.16, (3.0, 2.0)
"""Inches of a panel's title, of a line of the caption, and of a panel that has nothing to show."""


def draw(folder: Path, *, pdf: bool = False) -> list[Path]:
    """Draw the composed figure of a folder that has a figure.json; return what was written."""
    results = Results(folder)
    record = results.load_json("figure.json", COMPOSED)
    name = record["name"]
    if Path(name).name != name or name.startswith("."):  # it leads nowhere else
        raise wrong(folder / "figure.json", f"no file can be called {name!r}")
    with Interruptible():  # matplotlib's callbacks would swallow a Ctrl-C
        drawn = {name: compose(record, folder)}
        claims = claims_of(folder)
        if claims is not None:
            drawn["claims"] = scorecard.scorecard(claims, record["caption"].split(". ")[0])
        return results.save_figures(drawn, pdf=pdf)


CLAIMS = Table(
    {
        **dict.fromkeys(("claim", "figure", "statement", "statistic"), str),
        **dict.fromkeys(("value", "low", "high", "threshold"), float),
        "holds": tuple(scorecard.VERDICTS),
    }
)
"""What a claims.csv has."""


def claims_of(folder: Path) -> pd.DataFrame | None:
    """The claims of a composed figure, if it tests any."""
    path = folder / "claims.csv"
    if not path.exists() or read_csv(path).empty:
        return None
    return CLAIMS.read(path)


def draw_together(folders: list[Path], *, pdf: bool = False) -> list[Path]:
    """Write the claims of several composed figures as one scorecard into the folder that holds them all."""
    together = Results(Path(os.path.commonpath([path.resolve() for path in folders])))
    found = [table for path in folders if (table := claims_of(path)) is not None]
    if not found:
        return []
    claims = pd.concat(found, ignore_index=True)
    claims = claims.drop_duplicates(["claim", "value"])
    title = f"Claims of {len(folders)} figures: " + ", ".join(
        f"{count} {verdict}" for verdict, count in claims["holds"].value_counts().items()
    )
    written = together.save_tables({"scorecard": claims})
    return written + together.save_figures(
        {"scorecard": scorecard.scorecard(claims, title)}, pdf=pdf
    )


def compose(record: dict[str, Any], folder: Path) -> Figure:
    """Rows of panels, each under its title, and the caption below."""
    panels = {panel["name"]: panel for panel in record["panels"]}
    if unheard := {name for row in record["rows"] for name in row} - panels.keys():
        raise wrong(
            folder / "figure.json", f"its rows name a panel {min(unheard)}, which it has not"
        )
    rows = [[panels[name] for name in row] for row in record["rows"] if row]
    if not rows:
        raise wrong(folder / "figure.json", "it has no rows of panels")
    sizes = [[size(panel, folder) for panel in row] for row in rows]
    heights = [max(height for _, height in row) + HEAD for row in sizes]
    width = max(sum(width for width, _ in row) for row in sizes)
    caption = textwrap.wrap(record["caption"], int(width * 15))
    foot = FOOT_LINE * len(caption) + 0.15
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(figsize=(width, sum(heights) + foot), layout="constrained")
        strips = figure.subfigures(len(rows) + 1, 1, height_ratios=[*heights, foot], squeeze=False)
        for strip, row, of_row, height in zip(strips[:-1, 0], rows, sizes, heights, strict=True):
            widths = [width for width, _ in of_row]
            cells = strip.subfigures(1, len(row), width_ratios=widths, squeeze=False)[0]
            for cell, panel in zip(cells, row, strict=True):
                head, body = cell.subfigures(2, 1, height_ratios=[HEAD, height - HEAD])
                head.text(0.5, 0.3, panel["title"], ha="center", weight="bold", fontsize=10)
                draw_panel(panel, folder, body)
        strips[-1, 0].text(0.01, 0.95, "\n".join(caption), va="top", fontsize=7, color="0.3")
    return figure


def size(panel: dict[str, Any], folder: Path) -> tuple[float, float]:
    """Inches that the panel has as a figure of its own."""
    if not panel["results"]:
        return EMPTY
    shown = drawn(panel, folder)
    if panel["figure"] not in shown:
        raise wrong(folder / "figure.json", f"{panel['analysis']} has no figure {panel['figure']}")
    width, height = shown[panel["figure"]].get_size_inches()
    return float(width), float(height)


def draw_panel(panel: dict[str, Any], folder: Path, body: SubFigure) -> None:
    """The panel's figure on a part of a larger one, or why there is none."""
    if not panel["results"]:
        why = "\n".join(line for text in panel["missing"] for line in textwrap.wrap(text, 40))
        body.text(0.5, 0.5, why, ha="center", va="center", fontsize=8, color="0.35")
        return
    with style.watching() as made:
        alone = drawn(panel, folder)[panel["figure"]]
    with style.onto(body, made.index(alone)):
        drawn(panel, folder)


def drawn(panel: dict[str, Any], folder: Path) -> dict[str, Figure]:
    """All figures of the panel's results, each a figure of its own."""
    found = [read(folder / result) for result in panel["results"]]
    if len(found) == 1:
        return found[0].analysis.figures(found[0].tables, found[0].labels)
    return found[0].analysis.joined([(result.tables, result.labels) for result in found])
