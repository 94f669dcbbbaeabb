"""Evidence for the claims of a figure: the tables of its panels, in full and without each group of minibatches."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vitsee.papers.atlas import Published
from vitsee.papers.claims import CLAIMS
from vitsee.papers.verdicts import COLUMNS, Gathered, verdict
from vitsee.results import replicates
from vitsee.results.reading import StoredResult, read
from vitsee.results.replicates import Replicates


class Reader:
    """Reads each result folder only once, and likewise its tables without each group of minibatches."""

    def __init__(self) -> None:
        self._found: dict[Path, StoredResult] = {}
        self._parts: dict[Path, Replicates] = {}

    def __call__(self, folder: Path) -> StoredResult:
        """The result in this folder. Raises UserError if it has none."""
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


def verdicts(
    figure: Published, folders: dict[str, dict[str, Path]], reader: Reader
) -> pd.DataFrame:
    """One row of claims.csv per claim. folders: result folders by panel and role."""
    rows = []
    for name, panels in figure.claims.items():
        evidence = gather({key: folders[panel] for key, panel in panels.items()}, reader)
        rows.append(verdict(CLAIMS[name], figure.name, evidence))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def gather(wanted: dict[str, dict[str, Path]], reader: Reader) -> Gathered:
    """Tables in full, and without each group of minibatches.

    All results leave out the same groups, which hold the same images if data and seed are the same.
    Results without groups (of weights only) stay complete; if all are such, no images were drawn and the
    statistic is exact. Nothing is left out if results have different numbers of groups.
    """
    found = {
        key: {role: reader(path) for role, path in by_role.items()}
        for key, by_role in wanted.items()
    }
    whole = {
        key: {role: one.tables for role, one in by_role.items()} for key, by_role in found.items()
    }
    if not any(one.labels.images for by_role in found.values() for one in by_role.values()):
        return Gathered(whole, [whole, whole])
    parts = {
        (key, role): reader.without_groups(path)
        for key, by_role in wanted.items()
        for role, path in by_role.items()
    }
    counts = {len(part.tables) for part in parts.values() if part.tables}
    groups = counts.pop() if len(counts) == 1 else 0
    left_out = [
        {
            key: {
                role: (parts[key, role].tables or [tables] * groups)[i]
                for role, tables in by_role.items()
            }
            for key, by_role in whole.items()
        }
        for i in range(groups)
    ]
    return Gathered(whole, left_out, max((part.again for part in parts.values()), default=1.0))
