"""Schemas of the CSV tables, checked on reading because people edit these files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vitsee.errors import UserError, nearest
from vitsee.io.files import opened


@dataclass(frozen=True)
class Whole:
    """Whole numbers, at least `least`."""

    least: int = 0


class Error(float):
    """Standard errors, which are never negative."""


Kind = type[str] | type[float] | Whole | tuple[str, ...]
"""What a column contains: text, numbers (NaN if undefined), whole numbers, or one of these words."""
LONGEST = 2**12
"""Length of the longest name in characters, and of the inspected part of the first line in bytes."""
MODELS = ("model", "other")
"""The values of a column that gives which of two models a row belongs to."""


@dataclass(frozen=True)
class Table:
    """The schema of a table, which may have further columns.

    columns: the kind of each column, by name.
    keys: the columns that together identify a row; by default all except the float ones.
    grid: key columns whose combinations must all be present, for each value of the other keys.
    strided: whether the whole numbers of a grid may have a step above 1, such as 0, 3, 6.
    optional: whether the table may be missing from a result.
    """

    columns: Mapping[str, Kind]
    keys: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    strided: bool = False
    optional: bool = False

    def read(self, path: Path) -> pd.DataFrame:
        """Return the table in a CSV, each grid in order. Raises a UserError that says where the table is wrong."""
        texts = [n for n, kind in self.columns.items() if kind is str or isinstance(kind, tuple)]
        table = read(path, texts)
        for name in self.columns:
            if name not in table:
                there = list(map(str, table))
                hint = nearest(name, there)
                raise wrong(path, f"it has no column {name}; it has: {', '.join(there)}.{hint}")
        if table.empty:
            raise wrong(path, "it has no rows")
        for name, kind in self.columns.items():
            table[name] = _checked(path, table[name], kind)
        keys = list(self.keys) or [
            n for n, kind in self.columns.items() if kind not in (float, Error)
        ]
        twice = table.duplicated(keys)
        if twice.any():
            place = int(twice.argmax())
            same = ", ".join(f"{name} {table[name][place]}" for name in keys)
            raise wrong(path, f"line {place + 2} repeats an earlier line: {same}")
        return self._in_order(path, table, keys) if self.grid else table

    def _in_order(self, path: Path, table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
        """Return the table with each grid in order, as figures need it. Raises UserError if one has a gap."""
        apart = [name for name in keys if name not in self.grid]
        group: np.ndarray = np.zeros(len(table), int)
        if apart:
            group = table.groupby(apart, sort=False).ngroup().to_numpy()
        by_group = table.groupby(group)
        size: np.ndarray = np.ones(by_group.ngroups, int)
        places = []
        for name in self.grid:
            count = by_group[name].nunique().to_numpy()
            if isinstance(self.columns[name], Whole):
                places.append(table[name].to_numpy())
                step = by_group[name].agg(np.gcd.reduce).clip(lower=1) if self.strided else 1
                count = np.maximum(count, (by_group[name].max() // step).to_numpy() + 1)
            else:
                places.append(pd.factorize(table[name])[0])
            size = size * count
        rows = by_group.size().to_numpy()
        if (rows != size).any():
            bad = int((rows != size).argmax())
            first = int((group == bad).argmax())
            of = "".join(f", {name} {table[name][first]}" for name in apart)
            raise wrong(
                path,
                f"{size[bad] - rows[bad]} of {size[bad]} rows of the grid "
                f"{' x '.join(self.grid)}{of} are missing",
            )
        order = np.lexsort((*places[::-1], group))
        if np.array_equal(order, np.argsort(group, kind="stable")):
            return table
        return table.iloc[order].reset_index(drop=True)


def indices(shape: Sequence[int], *axes: str) -> dict[str, np.ndarray]:
    """Return the columns that give each value's index in an array of this shape before flattening, one per axis."""
    return {name: index.ravel() for name, index in zip(axes, np.indices(shape), strict=True)}


def read(path: Path, texts: Iterable[str] | None = None) -> pd.DataFrame:
    """Return the table in a CSV, with all digits. Raises UserError if the file is not a table.

    texts: columns of text; by default those of layers, which may be called 0 or NA.
    """
    if texts is None:
        columns = map(str, _csv(path, nrows=0))
        texts = [name for name in columns if name.endswith("layer")]
    return _csv(path, dtype=dict.fromkeys(texts, str), na_values=[""])


def as_written(path: Path) -> pd.DataFrame:
    """Return the table in a CSV, every cell as text. Raises UserError if the file is not a table."""
    return _csv(path, dtype=str)


def _csv(path: Path, **how: Any) -> pd.DataFrame:
    try:
        with warnings.catch_warnings(), opened(path) as file:
            first = file.readline(LONGEST)
            if b"," not in first and (b";" in first or b"\t" in first):
                raise wrong(path, "its columns are separated by semicolons or tabs, not by commas")
            file.seek(0)
            warnings.simplefilter("error", pd.errors.ParserWarning)  # more cells than columns
            return pd.read_csv(file, keep_default_na=False, index_col=False, **how)
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise wrong(path, "it is not UTF-8 text") from error
    except pd.errors.ParserWarning as error:
        raise wrong(path, "its lines have more cells than its header") from error
    except ValueError as error:
        raise wrong(path, " ".join(str(error).split()) or type(error).__name__) from error


def wrong(path: Path, reason: str) -> UserError:
    """Return the error for a damaged file of a result."""
    return UserError(
        f"{path} is damaged: {reason.rstrip('.')}; repeat the same `vitsee run` to write it again"
    )


def _checked(path: Path, column: pd.Series, kind: Kind) -> pd.Series:
    """Return the column with its kind's type. Raises a UserError that gives the first line that does not fit."""
    if kind is str:
        values = column.fillna("")
        bad, needed = values.str.len() > LONGEST, f"a name of at most {LONGEST} characters"
    elif isinstance(kind, tuple):
        values, bad, needed = column, ~column.isin(kind), f"one of: {', '.join(kind)}"
    else:
        values, bad = _numbers(column)
        needed = "a number"
        if isinstance(kind, Whole):
            bad = ~(values.between(kind.least, 2**53) & (values % 1 == 0))
            needed = f"a whole number, at least {kind.least}"
        elif kind is Error and not bad.any():
            bad, needed = values < 0, "a standard error, which is never negative"
    if bad.any():
        place = int(bad.argmax())
        there = "" if pd.isna(column[place]) else str(column[place])
        there = f"{there[:40]}…" if len(there) > 80 else there
        raise wrong(path, f"line {place + 2}, column {column.name}: {there!r} is not {needed}")
    return values.astype("int64") if isinstance(kind, Whole) else values


def _numbers(column: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Return the column as numbers, with NaN for empty cells, and a mask of the cells that are not numbers."""
    if column.dtype.kind in "iuf":
        return column, column.isna() & False
    texts = column.fillna("").astype(str).str.strip()
    numbers = pd.to_numeric(texts, errors="coerce")
    return numbers, numbers.isna() & ~texts.str.lower().isin(["", "nan"])
