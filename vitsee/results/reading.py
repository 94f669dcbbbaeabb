"""Reads a stored result: its analysis, tables and labels. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import vitsee.analyses  # noqa: F401  (registers every analysis)
from vitsee import returned
from vitsee.analysis import Analysis, Labels, registered
from vitsee.errors import UserError, nearest
from vitsee.io import plain
from vitsee.io.record import LABELS
from vitsee.io.tidy import wrong
from vitsee.results.folder import Results


@dataclass(frozen=True)
class StoredResult:
    """The content of a result folder."""

    analysis: Analysis
    tables: dict[str, pd.DataFrame]
    labels: Labels


@dataclass(frozen=True)
class Written:
    """A result folder after a run.

    files: the tables and figures that this process wrote. stored: its content; None in a process that only
    contributed to it.
    """

    folder: Path
    files: list[Path]
    stored: StoredResult | None = field(default=None, compare=False, repr=False)


def read(path: Path) -> StoredResult:
    """Return the content of a result folder. Raises UserError if it is not a result folder."""
    check(path)
    analysis = _analysis(path / "experiment.yaml")
    results = Results(path)
    tables = results.tables(analysis.columns)
    if not tables:
        raise UserError(f"{path} has no tables yet; run `vitsee run --from {path}/experiment.yaml`")
    stored = results.load_json("made_with.json", {"labels": LABELS})["labels"]
    known = {name: stored[name] for name in (f.name for f in fields(Labels)) if name in stored}
    return StoredResult(analysis, tables, Labels(**({"other": None} | known)))


def together(results: Mapping[Path, StoredResult]) -> list[tuple[dict[str, pd.DataFrame], Labels]]:
    """Return the tables and labels of several results, given by folder, for a figure of all of them.

    Results of equal models and data get their identity added to the model's name: each line has a name of its own.
    """
    shown = [(one.labels.models, one.labels.data) for one in results.values()]
    marks = [path.resolve().name.rpartition("-")[2] for path in results]
    return [
        (one.tables, one.labels)
        if shown.count(words) == 1
        else (one.tables, replace(one.labels, model=f"{one.labels.model} ({mark})"))
        for one, words, mark in zip(results.values(), shown, marks, strict=True)
    ]


def check(path: Path) -> None:
    """Raise UserError if this is not a result folder."""
    if not path.exists():
        beside = path.parent.iterdir() if path.parent.is_dir() else []
        raise UserError(f"{path} does not exist.{nearest(path.name, [one.name for one in beside])}")
    for needed in ("experiment.yaml", "made_with.json"):
        if not (path / needed).is_file():
            raise UserError(
                f"{path} is not a result folder: it has no {needed}; "
                f"give a folder such as outputs/cka/<model>/<dataset>-<identity>"
            )


def _analysis(path: Path) -> Analysis:
    """Return the analysis of an experiment.yaml, with its options. Raises UserError that names the file."""
    stored = plain.read(path)
    kind = registered(plain.analysis_of(stored, path), path)
    try:
        options = OmegaConf.create(stored["analysis"])
        merged = OmegaConf.merge(kind, options)
        assert isinstance(merged, DictConfig)
        return returned.made(merged)
    except (OmegaConfBaseException, UserError) as error:
        raise wrong(path, str(error).splitlines()[0]) from error
