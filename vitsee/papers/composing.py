"""Composed figures: the panels of a published figure, drawn from CSVs in the paper's layout."""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import GridSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoLocator, MaxNLocator
from matplotlib.transforms import Bbox

from vitsee import returned
from vitsee.errors import unknown
from vitsee.io.record import COMPOSED
from vitsee.io.tidy import Table, wrong
from vitsee.io.tidy import read as read_csv
from vitsee.parallel.interrupt import Interruptible
from vitsee.plotting import scorecard, style
from vitsee.results.folder import PNG, VECTOR, Formats, Results
from vitsee.results.reading import StoredResult, read, together

log = logging.getLogger(__name__)

Read = Callable[[Path], StoredResult]
WIDTHS = {"text": 6.75, "column": 3.25}
"""Width in inches of a page's text, and of one of its two columns."""
TITLE, LINE, BAR = 8.0, 0.125, 0.42
"""Size of a panel's title in points; height in inches of a line of text, and of a colour bar shared by panels."""
LOWEST = 0.05
"""Height in inches of an empty row of the page: with much lower rows, matplotlib's layout sometimes fails."""


def draw(folder: Path, *, formats: Formats = PNG, read: Read = read) -> list[Path]:
    """Draw the composed figure of a folder with a figure.json; return the files written.

    read: the function that reads the results of its panels. If it has no panel, no image is left in the folder.
    """
    results = Results(folder)
    record = results.load_json("figure.json", COMPOSED)
    name = record["name"]
    if Path(name).name != name or name.startswith("."):  # stay inside the folder
        raise wrong(folder / "figure.json", f"{name!r} is not a file name")
    drawn: dict[str, Figure] = {}
    with Interruptible():  # matplotlib's callbacks would swallow a Ctrl-C
        page = compose(record, folder, cache(read))
        if page is None:
            log.warning("warning: %s has no panel that could be drawn: %s", name, folder)
            for ending in (*PNG, *VECTOR):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
        else:
            drawn[name] = page
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
    found = {path.resolve(): claims_of(path) for path in folders}
    tables = {path: table for path, table in found.items() if table is not None}
    if not tables:
        return []
    names = {path: str(table["figure"].iloc[0]) for path, table in tables.items()}
    casts = {path: path.name.removeprefix(f"{names[path]}-") for path in tables}
    count = Counter((names[path], casts[path]) for path in tables)
    for path in tables:
        if count[names[path], casts[path]] > 1:  # the same models in another folder of results
            casts[path] += f" in {path.parent.relative_to(together.path)}"
    if len({*casts.values()}) > 1:  # one claim may have a row for each
        tables = {
            path: table.assign(figure=table["figure"] + f", {casts[path]}")
            for path, table in tables.items()
        }
    claims = pd.concat(tables, names=["path"]).reset_index("path")
    claims["cast"] = claims.pop("path").map(casts)
    claims = claims.drop_duplicates(["claim", "value", "holds", "cast"]).drop(columns="cast")
    claims = claims.reset_index(drop=True)
    title = f"Claims of {len(folders)} figures: " + ", ".join(
        f"{count} {verdict}" for verdict, count in claims["holds"].value_counts().items()
    )
    written = together.save_tables({"scorecard": claims})
    return written + together.save_figures(
        {"scorecard": scorecard.scorecard(claims, title)}, formats=formats
    )


@dataclass(frozen=True)
class Row:
    """Panels side by side, and the number in a full row."""

    panels: list[dict[str, Any]]
    full: int


@dataclass
class Drawn:
    """A panel on the page: its part, its columns of the grid, its size in inches, and what it leaves to the page."""

    part: SubFigure
    columns: slice
    width: float
    height: float
    part_of_page: style.PagePart

    @property
    def axes(self) -> Axes | None:
        """Its axes, if it has exactly one."""
        return self.part.axes[0] if len(self.part.axes) == 1 else None


def compose(record: dict[str, Any], folder: Path, read: Read) -> Figure | None:
    """A page with rows of titled panels, and the caption below; None if no panel has a result.

    Panels with the same colours share a colour bar, panels with the same lines a legend, and panels in a row the
    y axis if it is the same.
    """
    width = width_of(record, folder)
    rows = rows_of(record, folder, width)
    if not rows:
        return None
    with matplotlib.rc_context(style.PAGE):
        figure = Figure((width, 1), dpi=200, layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
        across = math.lcm(*(row.full for row in rows))
        grid = GridSpec(2 * len(rows) + 1, across, figure)  # below each row, what its panels share
        heights = [0.0] * grid.nrows
        drawn = []
        for i, row in enumerate(rows):
            step = across // row.full
            panels = [
                draw_panel(panel, folder, figure, grid[2 * i, j * step : (j + 1) * step], read)
                for j, panel in enumerate(row.panels)
            ]
            share_y(panels)
            drawn.append(panels)
        names = share_names(drawn, figure, grid, width)
        for last, height in (names | share_bars(drawn, figure, grid)).items():
            heights[2 * last + 1] = height
        for i, panels in enumerate(drawn):
            heights[2 * i] = max(panel.height for panel in panels)
        if record.get("captioned", True):
            heights[-1] = write_caption(figure.add_subfigure(grid[-1, :]), record["caption"], width)
        heights = [max(height, LOWEST) for height in heights]
        grid.set_height_ratios(heights)
        figure.set_size_inches(width, sum(heights))
        lay_out(figure)
        for panels in drawn:
            align(panels)
        round_positions(figure)
    return figure


def width_of(record: dict[str, Any], folder: Path) -> float:
    """The width of the page in inches. Raises UserError if it is not one of WIDTHS."""
    name = record.get("width", "text")
    if name not in WIDTHS:
        raise unknown(
            f"{folder / 'figure.json'}: there is no width {name}", name, WIDTHS, "it can be"
        )
    return WIDTHS[name]


def rows_of(record: dict[str, Any], folder: Path, width: float = WIDTHS["text"]) -> list[Row]:
    """The panels with results, in rows that are broken if the page is too narrow for them.

    If several panels show the same picture, only the first is kept, with the titles of all. Raises UserError if there
    are no rows, or if they name an unknown panel.
    """
    panels = {panel["name"]: panel for panel in record["panels"]}
    if unknown := {name for row in record["rows"] for name in row} - panels.keys():
        raise wrong(
            folder / "figure.json", f"its rows name a panel {min(unknown)} that does not exist"
        )
    if not any(record["rows"]):
        raise wrong(folder / "figure.json", "it has no rows of panels")
    first: dict[Any, dict[str, Any]] = {}
    rows: list[Row] = []
    for names in record["rows"]:
        row = []
        for panel in (dict(panels[name]) for name in names if panels[name]["results"]):
            key = panel["analysis"], panel["figure"], *panel["results"]
            if key in first:
                first[key]["title"] += f" and {panel['title']}"
            else:
                row.append(first.setdefault(key, panel))
        most = record.get("abreast", 1) if width < WIDTHS["text"] else len(row)
        most = max(1, min(len(row), most))
        rows += [Row(row[i : i + most], most) for i in range(0, len(row), most)]
    return rows


def draw_panel(
    panel: dict[str, Any], folder: Path, figure: Figure, place: Any, read: Read
) -> Drawn:
    """Draw a panel with its title onto this place of the page's grid."""
    grid = place.get_gridspec()
    share = len(place.colspan) / grid.ncols
    to = style.PagePanel(figure.get_figwidth() * share, lambda: figure.add_subfigure(place))
    with style.onto(to):
        figures = figures_of(panel, folder, read)
    of = f"{panel['figure']} of {panel['analysis']}"
    if panel["figure"] not in figures:
        raise unknown(f"there is no figure {of}", panel["figure"], figures, "it draws")
    shown: Any = figures[panel["figure"]]
    if shown not in to.parts:
        raise wrong(
            folder / "figure.json",
            f"{of} cannot be a panel because it is not drawn on vitsee.plotting.style.canvas",
        )
    for part in to.parts.keys() - {shown}:  # the analysis's other figures
        for axes in [*part.axes]:
            part.delaxes(axes)
        figure.subfigs.remove(part)
    wide = TITLE * 1.1  # bold letters are wider
    title = style.wrapped(titled(panel, folder, read), to.width - 0.15, wide)
    shown.suptitle(title, fontsize=TITLE, weight="bold")
    height = to.parts[shown].height + (title.count("\n") + 1) * 1.15 * LINE + 0.06
    for axes in shown.axes:
        fit_words(axes, to.width, to.parts[shown].height)
    columns = slice(place.colspan.start, place.colspan.stop)
    return Drawn(shown, columns, to.width, height, to.parts[shown])


def titled(panel: dict[str, Any], folder: Path, read: Read) -> str:
    """The title of a panel, with the models that were run, unless a legend names them."""
    every = [read(folder / result).labels for result in panel["results"]]
    if len(every) > 1:
        others = {labels.other for labels in every}
        against = panel.get("names_models") and len(others) == 1 and any(others)
        return panel["title"] + (f", vs {others.pop()}" if against else "")
    names = every[0].models
    return (
        f"{names}, for {panel['title']}"
        if panel.get("names_models")
        else f"{panel['title']}: {names}"
    )


def figures_of(panel: dict[str, Any], folder: Path, read: Read) -> dict[str, Figure]:
    """All figures drawn from the panel's results."""
    results = {folder / result: read(folder / result) for result in panel["results"]}
    first = next(iter(results.values()))
    if len(panel["results"]) == 1:
        return returned.of(first.analysis, "figures", first.tables, first.labels)
    return returned.of(first.analysis, "joined", together(results))


def fit_words(axes: Axes, width: float, height: float) -> None:
    """Wrap labels longer than the side of the axes, and thin out tick labels. width, height: of the panel in inches."""
    place = axes.get_subplotspec()
    rows, columns = place.get_gridspec().get_geometry() if place else (1, 1)
    axes.title.set_text(style.wrapped(axes.get_title(), width / columns - 0.1, style.SMALL))
    axes.set_xlabel(style.wrapped(axes.get_xlabel(), width / columns - 0.6, style.SMALL))
    axes.set_ylabel(style.wrapped(axes.get_ylabel(), height / rows - 0.4, style.SMALL))
    for axis, room in (
        (axes.xaxis, (width / columns - 0.6) / 3),
        (axes.yaxis, (height / rows - 0.5) / 2),
    ):
        # by default the choice of ticks depends on the last digit of a size
        if type(axis.get_major_locator()) is AutoLocator:
            most = int(np.clip(72 * room / style.SMALL, 3, 9))
            axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))


def share_y(panels: list[Drawn]) -> None:
    """Share one y axis between panels side by side with the same label and scale; only the first keeps its numbers."""
    every = [panel.axes for panel in panels]
    plots = [axes for axes in every if axes is not None and not axes.images]
    kinds = {(axes.get_ylabel(), axes.get_yscale()) for axes in plots}
    if len(plots) < max(2, len(every)) or len(kinds) > 1:
        return
    lows, highs = zip(*(axes.get_ylim() for axes in plots), strict=True)
    for axes in plots:
        axes.set_ylim(min(lows), max(highs))
    for axes in plots[1:]:
        axes.set_ylabel("")
        axes.tick_params(labelleft=False)


def share_names(
    rows: list[list[Drawn]], figure: Figure, grid: GridSpec, width: float
) -> dict[int, float]:
    """Draw the legends: one below all rows whose panels have the same legend, otherwise one below each panel.

    Return the heights of the shared legends, by the row above them.
    """
    heights = {}
    alike = [{marks(panel) for panel in row} for row in rows]
    for same, group in groupby(range(len(rows)), lambda i: alike[i]):
        some = list(group)
        panels = [panel for i in some for panel in rows[i] if marks(panel)]
        barred = any(panel.part_of_page.bars for panel in panels)
        if len(same) == 1 and len(panels) > 1 and not barred:
            part = figure.add_subfigure(grid[2 * some[-1] + 1, :])
            heights[some[-1]] = write_legend(part, panels[0], width, "center")
            continue
        for panel in panels:
            panel.height += write_legend(panel.part, panel, panel.width, "outside lower center")
    return heights


def marks(panel: Drawn) -> tuple[Any, ...]:
    """The names in the panel's legend, each with its colour, line and marker."""
    found = []
    for handle, label in zip(*(panel.part_of_page.legend or ([], [])), strict=True):
        artist: Any = handle[0] if isinstance(handle, tuple) else handle
        looks = ("color", "linestyle", "marker") if isinstance(artist, Line2D) else ("facecolor",)
        found.append((label, *(str(getattr(artist, f"get_{look}")()) for look in looks)))
    return tuple(found)


def write_legend(part: SubFigure, panel: Drawn, width: float, where: Any) -> float:
    """Write the panel's legend into a part of the page, in as many columns as fit; return its height."""
    assert panel.part_of_page.legend is not None
    handles, labels = panel.part_of_page.legend
    columns, names = style.fitting(labels, width - 0.1, style.SMALL, len(labels), 2.4)
    lines = -(-len(names) // columns)
    columns = -(-len(names) // lines)  # no line is nearly empty
    part.legend(
        handles, names, loc=where, ncols=columns, frameon=False, handlelength=2.4,
        columnspacing=1.2, borderaxespad=0.2, labelspacing=0.3,
    )  # fmt: skip
    tall = max(name.count("\n") + 1 for name in names)
    return lines * tall * LINE + 0.1


def share_bars(rows: list[list[Drawn]], figure: Figure, grid: GridSpec) -> dict[int, float]:
    """Draw the colour bars: one below all rows whose panels have the same colours, otherwise one below each panel.

    Return their heights, by the row above them.
    """
    heights = {}
    alike = [{colours(panel) for panel in row} for row in rows]
    for same, group in groupby(range(len(rows)), lambda i: alike[i]):
        some = list(group)
        if len(same) == 1 and same != {None}:
            place = grid[2 * some[-1] + 1, :]
            panel, part = rows[some[0]][0], figure.add_subfigure(place)
            heights[some[-1]] = draw_bar(part, panel, figure.get_figwidth(), 1 / 2)
            continue
        for i in some:
            for panel in rows[i]:
                if len(panel.part_of_page.bars) > 1:
                    for image, axes, label, options in panel.part_of_page.bars:
                        panel.part.colorbar(image, ax=axes, label=label, **options)
                elif colours(panel):
                    place = grid[2 * i + 1, panel.columns]
                    height = draw_bar(figure.add_subfigure(place), panel, panel.width, 3 / 4)
                    heights[i] = max(height, heights.get(i, 0))
    return heights


def colours(panel: Drawn) -> tuple[Any, ...] | None:
    """A key that is equal for panels that share a colour bar; None for a panel without one, or with several."""
    if len(panel.part_of_page.bars) != 1:
        return None
    image, _, label, options = panel.part_of_page.bars[0]
    return label, image.cmap.name, *image.get_clim(), options.get("extend", "neither")


def draw_bar(part: SubFigure, panel: Drawn, width: float, share: float) -> float:
    """Draw the panel's colour bar into a part of the page, over this fraction of its width; return its height."""
    image, _, label, options = panel.part_of_page.bars[0]
    place = part.add_gridspec(1, 3, width_ratios=[(1 - share) / 2, share, (1 - share) / 2])[1]
    axes = part.add_subplot(place, label="<colorbar>")  # matplotlib's own label for colour bars
    extend = options.get("extend", "neither")
    label = style.wrapped(" ".join(label.split()), width * share, style.SMALL)
    part.colorbar(image, cax=axes, orientation="horizontal", label=label, extend=extend)
    return BAR + label.count("\n") * LINE


def write_caption(part: SubFigure, caption: str, width: float) -> float:
    """Write the caption into a part of the page; return its height."""
    text = style.wrapped(caption, width - 0.1, style.SMALL)
    part.text(0.05 / width, 0.95, text, va="top", fontsize=style.SMALL, color="0.3")
    return (text.count("\n") + 1) * LINE + 0.1


def lay_out(figure: Figure) -> None:
    """Fix the positions of all axes.

    Matplotlib's layout leaves too little room beside images that do not fill their place, so during layout they do.
    """
    shapes = [(axes, axes.get_aspect()) for axes in figure.axes]
    for axes, _ in shapes:
        axes.set_aspect("auto")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")
    for axes, aspect in shapes:
        axes.set_aspect(aspect)
        axes.set_anchor("N")


def align(panels: list[Drawn]) -> None:
    """Give the axes of panels side by side the same height, and images in a row also the same width."""
    boxes = {
        axes: (panel.part, axes.get_position(original=True).transformed(panel.part.transSubfigure))
        for panel in panels
        if (axes := panel.axes)
    }
    low = max((box.y0 for _, box in boxes.values()), default=0.0)
    high = min((box.y1 for _, box in boxes.values()), default=0.0)
    narrowest = min((box.width for axes, (_, box) in boxes.items() if axes.images), default=0.0)
    for axes, (part, box) in boxes.items():
        aside = (box.width - narrowest) / 2 if axes.images else 0.0
        place = Bbox.from_extents(box.x0 + aside, low, box.x1 - aside, high)
        axes.set_position(place.transformed(part.transSubfigure.inverted()))


def round_positions(figure: Figure) -> None:
    """Round all positions on the page: the layout's last digits differ between drawings."""
    for part in figure.subfigs:
        part.bbox_relative.set_points(part.bbox_relative.get_points().round(6) + 0.0)  # no -0
    for axes in figure.axes:
        points = axes.get_position(original=True).get_points().round(6) + 0.0
        axes.set_position(Bbox(points))
