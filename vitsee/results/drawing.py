"""Draws the figures of result folders from their CSVs. Does not import torch."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from vitsee import returned
from vitsee.parallel.interrupt import Interruptible
from vitsee.results.folder import PNG, Formats, Results
from vitsee.results.reading import StoredResult, read, together

log = logging.getLogger(__name__)


def draw(path: Path, stored: StoredResult | None = None, *, formats: Formats = PNG) -> list[Path]:
    """Draw the figures of a result folder and return their paths. Raises UserError if it is not a result folder.

    stored: its content, if that has been read already.
    """
    from matplotlib.figure import Figure

    with Interruptible():  # matplotlib's callbacks would swallow a Ctrl-C
        stored = stored or read(path)
        given = stored.tables, stored.labels
        drawn = returned.named(stored.analysis, "figures", Figure, *given)
        return Results(path).save_figures(drawn, formats=formats)


def draw_joined(paths: list[Path], *, formats: Formats = PNG) -> list[Path]:
    """Draw several results of one analysis in one figure, in their common parent folder; return the paths.

    Nothing is drawn if the analyses differ, or if the analysis has no such figure.
    """
    from matplotlib.figure import Figure

    with Interruptible():  # as above
        stored = {path: read(path) for path in paths}
        if len(names := {result.analysis.name: None for result in stored.values()}) > 1:
            log.info("there is no figure of %s together", " and ".join(names))
            return []
        analysis = stored[paths[0]].analysis
        if not analysis.draws_several:
            log.info("%s has no figure of several results", analysis.name)
            return []
        resolved = [str(path.resolve()) for path in paths]
        digest = hashlib.sha256("\0".join(resolved).encode()).hexdigest()[:8]
        common = Results(Path(os.path.commonpath(resolved)))
        drawn = returned.named(analysis, "joined", Figure, together(stored))
        named = {f"{name}-{digest}": figure for name, figure in drawn.items()}
        return common.save_figures(named, formats=formats)
