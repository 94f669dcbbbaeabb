"""`vitsee plot`: figures of a result folder from its CSVs; computes nothing, imports no torch."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import vitsee.analyses  # noqa: F401  (registers every analysis)
from vitsee import plain
from vitsee.analysis import REGISTERED, Analysis, Labels
from vitsee.errors import UserError, unknown
from vitsee.interrupt import Interruptible
from vitsee.record import LABELS
from vitsee.results import Results
from vitsee.tidy import wrong


def plot(path: Path, *, pdf: bool = False) -> list[Path]:
    """Draw the figures of a result folder, return their paths. Raises UserError if it is not one."""
    with Interruptible():  # matplotlib's callbacks would swallow a Ctrl-C
        if (path / "figure.json").is_file():
            from vitsee.composing import draw

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
            from vitsee.composing import draw_together

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


@dataclass(frozen=True)
class Found:
    """What a result folder holds."""

    analysis: Analysis
    tables: dict[str, pd.DataFrame]
    labels: Labels


def read(path: Path) -> Found:
    """What a result folder holds. Raises UserError if it is not one."""
    results = Results(path)
    for needed in ("experiment.yaml", "made_with.json"):
        if not (path / needed).is_file():
            raise UserError(
                f"{path} is not a result folder: it has no {needed}; "
                f"name a folder such as outputs/cka/<model>/<dataset>-<identity>"
            )
    analysis = _analysis(path / "experiment.yaml")
    tables = results.tables(analysis.columns)
    if not tables:
        raise UserError(f"{path} has no tables yet; run `vitsee run --from {path}/experiment.yaml`")
    said = results.load_json("made_with.json", {"labels": LABELS})["labels"]
    known = {name: said[name] for name in (f.name for f in fields(Labels)) if name in said}
    return Found(analysis, tables, Labels(**({"other": None} | known)))


def _analysis(path: Path) -> Analysis:
    """The analysis that an experiment.yaml asks for, with its options. Raises UserError that names the file."""
    stored = plain.read(path)
    name = plain.analysis_of(stored, path)
    if name not in REGISTERED:
        raise unknown(f"{path}: there is no analysis {name}", name, REGISTERED, "there are")
    try:
        options = OmegaConf.create(stored["analysis"])
        analysis = OmegaConf.to_object(OmegaConf.merge(REGISTERED[name], options))
    except (OmegaConfBaseException, UserError) as error:
        raise wrong(path, str(error).splitlines()[0]) from error
    assert isinstance(analysis, Analysis)
    return analysis
