"""Figures of result folders, drawn from their CSVs. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vitsee.parallel.interrupt import Interruptible
from vitsee.results.folder import Results
from vitsee.results.reading import read


def plot(path: Path, *, pdf: bool = False) -> list[Path]:
    """Draw the figures of a result folder, return their paths. Raises UserError if it is not one."""
    with Interruptible():  # matplotlib's callbacks would swallow a Ctrl-C
        if (path / "figure.json").is_file():
            from vitsee.papers.composing import draw

            return draw(path, pdf=pdf)
        found = read(path)
        figures = found.analysis.figures(found.tables, found.labels)
        return Results(path).save_figures(figures, pdf=pdf)


def plot_joined(paths: list[Path], *, pdf: bool = False) -> list[Path]:
    """Draw several results of one analysis in one figure, in the folder that holds all; return the paths.

    Nothing is drawn where the analyses differ, or have no such figure. Of composed figures the claims are
    written together.
    """
    with Interruptible():  # as above
        composed = [(path / "figure.json").is_file() for path in paths]
        if all(composed):
            from vitsee.papers.composing import draw_together

            return draw_together(paths, pdf=pdf)
        if any(composed):
            return []
        found = [read(path) for path in paths]
        if len({result.analysis.name for result in found}) > 1:
            return []
        figures = found[0].analysis.joined([(result.tables, result.labels) for result in found])
        resolved = [str(path.resolve()) for path in paths]
        digest = hashlib.sha256("\0".join(resolved).encode()).hexdigest()[:8]
        together = Results(Path(os.path.commonpath(resolved)))
        named = {f"{name}-{digest}": figure for name, figure in figures.items()}
        return together.save_figures(named, pdf=pdf)
