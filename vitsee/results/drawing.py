"""Figures of result folders, drawn from their CSVs. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vitsee.parallel.interrupt import Interruptible
from vitsee.results.folder import Results
from vitsee.results.reading import read


def draw(path: Path, *, pdf: bool = False) -> list[Path]:
    """Draw the figures of a result folder, return their paths. Raises UserError if it is not one."""
    with Interruptible():  # matplotlib's callbacks would swallow a Ctrl-C
        found = read(path)
        figures = found.analysis.figures(found.tables, found.labels)
        return Results(path).save_figures(figures, pdf=pdf)


def draw_joined(paths: list[Path], *, pdf: bool = False) -> list[Path]:
    """Draw several results of one analysis in one figure, in the folder that holds all; return the paths.

    Nothing is drawn where the analyses differ, or have no such figure.
    """
    with Interruptible():  # as above
        found = [read(path) for path in paths]
        if len({result.analysis.name for result in found}) > 1:
            return []
        figures = found[0].analysis.joined([(result.tables, result.labels) for result in found])
        resolved = [str(path.resolve()) for path in paths]
        digest = hashlib.sha256("\0".join(resolved).encode()).hexdigest()[:8]
        together = Results(Path(os.path.commonpath(resolved)))
        named = {f"{name}-{digest}": figure for name, figure in figures.items()}
        return together.save_figures(named, pdf=pdf)
