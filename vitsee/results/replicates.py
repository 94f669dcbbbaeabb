"""Leave-one-group-out tables, from which confidence intervals of any statistic are computed."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vitsee.errors import UserError
from vitsee.io.files import opened
from vitsee.io.tidy import wrong

NAME = "replicates.npz"
MOST = 1000
"""Limit on the number of groups."""
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, MemoryError),
    *(KeyError, ValueError, TypeError),
)
"""Errors that NumPy raises for a file that is not an archive of arrays."""


def pack(
    tables: Mapping[str, pd.DataFrame], without: Sequence[Mapping[str, pd.DataFrame]], again: float
) -> bytes:
    """Return the float columns of the leave-one-group-out tables, (groups, rows) each, as the bytes of a file.

    Standard errors, columns that never change, and tables whose number of rows changes are left out. again:
    how often an image was drawn on average (1 without `repeats`). True errors exceed those between groups by
    this factor.
    """
    arrays: dict[str, Any] = {"groups": np.array(len(without)), "again": np.array(again)}
    for name, table in tables.items():
        if not without or any(len(one[name]) != len(table) for one in without):
            continue
        for column in table.select_dtypes("float64").columns.drop("se", errors="ignore"):
            values = np.array([one[name][column] for one in without])
            if not np.array_equal(values, np.broadcast_to(table[column], values.shape), True):
                arrays[f"{name}/{column}"] = values
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # numpy 2.0 would store `allow_pickle` as an array
    return buffer.getvalue()


@dataclass(frozen=True)
class Replicates:
    """The leave-one-group-out tables of a result, and how often an image was drawn on average."""

    tables: list[dict[str, pd.DataFrame]]
    again: float = 1.0


def read(folder: Path, tables: Mapping[str, pd.DataFrame]) -> Replicates:
    """Return the replicates of a result folder, without tables if there are none. Raises UserError if damaged."""
    path = folder / NAME
    if not path.exists():
        return Replicates([])
    try:
        with opened(path) as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        groups, again = int(arrays.pop("groups")), float(arrays.pop("again"))
    except _UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        raise wrong(path, "it is not an archive of tables") from error
    if not 0 <= groups < MOST:
        raise wrong(path, f"it has {groups} groups")
    for name, values in arrays.items():
        table, _, column = name.rpartition("/")
        there = table in tables and column in tables[table]
        if not there or values.shape != (groups, len(tables[table])):
            raise wrong(path, f"its {name} does not fit the table")
    replicates = []
    for i in range(groups):
        one = {name: table.copy() for name, table in tables.items()}
        for name, values in arrays.items():
            table, column = name.rsplit("/", 1)
            one[table][column] = values[i]
        replicates.append(one)
    return Replicates(replicates, again)
