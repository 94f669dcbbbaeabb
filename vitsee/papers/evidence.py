"""Evidence for the claims of a figure: its panels' tables, in full, without each group, and untrained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from vitsee.papers.atlas import Published
from vitsee.papers.claims import CLAIMS
from vitsee.papers.verdicts import COLUMNS, Gathered, Panels, verdict
from vitsee.results import replicates
from vitsee.results.reading import StoredResult, Written, read
from vitsee.results.replicates import Replicates


class Reader:
    """Reads each result folder only once, and also its tables without each group of minibatches."""

    def __init__(self) -> None:
        self._found: dict[Path, StoredResult] = {}
        self._parts: dict[Path, Replicates] = {}

    def keep(self, written: Written) -> None:
        """Keep a result that has just been written, so that it need not be read."""
        if written.stored is not None:
            self._found[written.folder.resolve()] = written.stored

    def __call__(self, folder: Path) -> StoredResult:
        """The result in this folder. Raises UserError if there is none."""
        key = folder.resolve()
        if key not in self._found:
            self._found[key] = read(folder)
        return self._found[key]

    def without_groups(self, folder: Path) -> Replicates:
        """The tables without each group of minibatches, and how often each image was drawn."""
        key = folder.resolve()
        if key not in self._parts:
            self._parts[key] = replicates.read(folder, self(folder).tables)
        return self._parts[key]


Folders = Mapping[str, Mapping[str, Path]]
"""Result folders by panel and role."""
Wanted = Mapping[str, Sequence[Mapping[str, Path]]]
"""Result folders by role, for the panels that give each piece of evidence."""


def verdicts(
    figure: Published, folders: Folders, untrained: Folders, reader: Reader
) -> pd.DataFrame:
    """One row of claims.csv per claim. untrained: folders of the same models with random weights."""
    rows = []
    for name in figure.claims:
        claim, evidence = CLAIMS[name], gather(wanted(figure, name, folders), reader)
        null = None
        if claim.untrained and untrained:
            null = tables(wanted(figure, name, untrained, folders), reader)
        rows.append(verdict(claim, figure.name, evidence, null))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def wanted(figure: Published, claim: str, folders: Folders, shown: Folders | None = None) -> Wanted:
    """The results for each piece of evidence; panels without any are left out if another panel has some.

    shown: the folders that decide this, by default the same ones.
    """
    there = folders if shown is None else shown
    found = {}
    for key, panels in figure.claims[claim].items():
        kept = [panel for panel in panels if there.get(panel)]
        found[key] = [folders.get(panel, {}) for panel in kept] or [{}]
    return found


def tables(wanted: Wanted, reader: Reader) -> Panels:
    """The tables of results."""
    return {
        key: [{role: reader(path).tables for role, path in one.items()} for one in panels]
        for key, panels in wanted.items()
    }


def gather(wanted: Wanted, reader: Reader) -> Gathered:
    """Tables in full, and without each group of minibatches.

    All results leave out the same groups, which contain the same images if data and seed are the same.
    Results without groups (of weights only) stay complete; if no result has groups, no images were drawn and
    the statistic is exact. Nothing is left out if results have different numbers of groups.
    """
    whole, paths = tables(wanted, reader), every_path(wanted)
    if not any(reader(path).labels.images for path in paths):
        return Gathered(whole, [whole, whole])
    parts = {path: reader.without_groups(path) for path in paths}
    counts = {len(part.tables) for part in parts.values() if part.tables}
    groups = counts.pop() if len(counts) == 1 else 0
    left_out = [
        {
            key: [
                {
                    role: (parts[path].tables or [reader(path).tables] * groups)[i]
                    for role, path in one.items()
                }
                for one in panels
            ]
            for key, panels in wanted.items()
        }
        for i in range(groups)
    ]
    return Gathered(whole, left_out, max((part.again for part in parts.values()), default=1.0))


def every_path(wanted: Wanted) -> list[Path]:
    """The result folders, each once."""
    panels = (one for several in wanted.values() for one in several)
    return list(dict.fromkeys(path for one in panels for path in one.values()))
