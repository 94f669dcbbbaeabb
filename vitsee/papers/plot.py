"""`vitsee plot`: redraws results and composed figures from their CSVs, without importing torch."""

from __future__ import annotations

from pathlib import Path

from vitsee.comparing import record
from vitsee.papers import composing
from vitsee.results import drawing, reading
from vitsee.results.folder import PNG, Formats


def plot(path: Path, *, formats: Formats = PNG) -> list[Path]:
    """Draw a result folder, a comparison or a composed figure; return the files written.

    Raises UserError if it is none of these.
    """
    if _is_comparison(path):
        from vitsee.comparing import drawing as comparing  # imports SciPy, which takes a while

        return comparing.draw(path, formats=formats)
    if _is_composed(path):
        return composing.draw(path, formats=formats)
    return drawing.draw(path, formats=formats)


def check(path: Path) -> None:
    """Raise UserError if this is no result folder, comparison or composed figure."""
    if not _is_comparison(path) and not _is_composed(path):
        reading.check(path)


def plot_joined(paths: list[Path], *, formats: Formats = PNG) -> list[Path]:
    """Draw several results of one analysis together; for composed figures, write a common scorecard."""
    if any(map(_is_comparison, paths)):
        return []
    composed = [_is_composed(path) for path in paths]
    if all(composed):
        return composing.draw_together(paths, formats=formats)
    return [] if any(composed) else drawing.draw_joined(paths, formats=formats)


def _is_composed(path: Path) -> bool:
    return (path / "figure.json").is_file()


def _is_comparison(path: Path) -> bool:
    return (path / record.NAME).is_file()
