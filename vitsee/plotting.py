"""`vitsee plot`: figures of a result folder from its CSVs; computes nothing, imports no torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

import vitsee.analyses  # noqa: F401  (registers every analysis)
from vitsee import plain
from vitsee.analysis import REGISTERED, Analysis, Labels
from vitsee.errors import UserError, unknown
from vitsee.results import Results


def plot(path: Path, *, pdf: bool = False) -> list[Path]:
    """Draw the figures of a result folder, return their paths. Raises UserError if it is not one."""
    results, analysis, tables, labels = _read(path)
    return results.save_figures(analysis.figures(tables, labels), pdf=pdf)


def plot_joined(paths: list[Path], *, pdf: bool = False) -> list[Path]:
    """Draw several results of one analysis in one figure, in the folder that holds all; return the paths.

    Nothing is drawn where the analyses differ, or have no such figure.
    """
    read = [_read(path) for path in paths]
    analyses = [analysis for _, analysis, *_ in read]
    if len({analysis.name for analysis in analyses}) > 1:
        return []
    figures = analyses[0].joined([(tables, labels) for *_, tables, labels in read])
    resolved = [str(path.resolve()) for path in paths]
    digest = hashlib.sha256("\0".join(resolved).encode()).hexdigest()[:8]
    together = Results(Path(os.path.commonpath(resolved)))
    named = {f"{name}-{digest}": figure for name, figure in figures.items()}
    return together.save_figures(named, pdf=pdf)


def _read(path: Path) -> tuple[Results, Analysis, dict[str, pd.DataFrame], Labels]:
    """A result folder's analysis, tables and labels. Raises UserError if it is not one."""
    results = Results(path)
    for needed in ("experiment.yaml", "made_with.json"):
        if not (path / needed).is_file():
            raise UserError(
                f"{path} is not a result folder: it has no {needed}; "
                f"name a folder such as outputs/cka/<model>/<dataset>-<identity>"
            )
    options = OmegaConf.create(plain.read(path / "experiment.yaml")).analysis
    if options.name not in REGISTERED:
        raise unknown(f"there is no analysis {options.name}", options.name, REGISTERED, "there are")
    analysis = OmegaConf.to_object(OmegaConf.merge(REGISTERED[options.name], options))
    assert isinstance(analysis, Analysis)
    tables = results.tables()
    if not tables:
        raise UserError(f"{path} has no tables yet; run `vitsee run --from {path}/experiment.yaml`")
    return results, analysis, tables, Labels(**results.load_json("made_with.json")["labels"])
