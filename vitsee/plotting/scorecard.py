"""The claims and their verdicts as a figure."""

from __future__ import annotations

import textwrap
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitsee.plotting.style import STYLE, canvas

VERDICTS = {
    "yes": ("✓", "#0072B2"),
    "no": ("✗", "#D55E00"),
    "undecided": ("?", "0.35"),
    "untrained too": ("≈", "#CC79A7"),
    "not testable": ("–", "0.6"),
}


def scorecard(table: pd.DataFrame, title: str) -> Figure:
    """One row per claim: statement, verdict, statistic with interval, threshold, statistic of untrained networks.

    table: as in claims.csv.
    """
    statements = [
        textwrap.wrap(f"{statement} ({figure})", 62)
        for statement, figure in zip(table["statement"], table["figure"], strict=True)
    ]
    heights = [0.06 + 0.14 * len(lines) for lines in statements]
    tall = sum(heights) + 0.75
    with matplotlib.rc_context(STYLE):
        figure = canvas((9.4, tall), None)
        columns = {
            "Claim": 0.02,
            "Holds": 0.48,
            "Statistic [95 % interval]": 0.61,
            "Claimed": 0.83,
            "Untrained": 0.91,
        }
        y = 1 - 0.22 / tall
        figure.text(0.02, y, title, weight="bold", va="center")
        y -= 0.3 / tall
        for name, x in columns.items():
            figure.text(x, y, name, fontsize=8, color="0.35", va="center")
        y -= 0.12 / tall
        for row, lines, height in zip(table.to_dict("records"), statements, heights, strict=True):
            mark, colour = VERDICTS[row["holds"]]
            middle = y - height / tall / 2
            cells = (
                *("\n".join(lines), f"{mark}  {row['holds']}", _interval(row), _claimed(row)),
                f"{row['untrained']:.3g}" if np.isfinite(row["untrained"]) else "",
            )
            for x, cell, shade in zip(
                columns.values(), cells, ("0", colour, "0", "0", "0"), strict=True
            ):
                figure.text(x, middle, cell, fontsize=8, va="center", color=shade)
            y -= height / tall
            figure.add_artist(Line2D((0.02, 0.98), (y, y), color="0.88", linewidth=0.6))
    return figure


def _interval(row: dict[Any, Any]) -> str:
    """The statistic and its interval as text."""
    if not np.isfinite(row["value"]):
        return ""
    interval = f" [{row['low']:.3g}, {row['high']:.3g}]" if np.isfinite(row["low"]) else ""
    return f"{row['value']:.3g}{interval}"


def _claimed(row: dict[Any, Any]) -> str:
    sign = ">" if "(above is claimed)" in row["statistic"] else "<"
    return f"{sign} {row['threshold']:.3g}"
