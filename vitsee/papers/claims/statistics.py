"""Building blocks of the claims' statistics: what a panel's tables say, as numbers, series and matrices.

All raise Missing if the panel lacks what they read. A panel with several models needs the role of one of them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitsee.errors import nearest
from vitsee.papers.verdicts import Evidence, Missing


def roles_in(evidence: Evidence, kind: str = "") -> list[str]:
    """The roles of a panel whose names start with `kind`. Raises Missing if the panel has no roles at all."""
    if not evidence:
        raise Missing("the panel")
    return [role for role in evidence if role.startswith(kind)]


def number_in(role: str) -> int:
    """The number at the end of a role's name: the share of the data in percent, or a block."""
    return int(role.rpartition("_")[2])


def table_of(evidence: Evidence, name: str, role: str | None = None) -> pd.DataFrame:
    """The table with this name, as in the CSV, of a role or of the panel's only one."""
    if role is None:
        role, *others = roles_in(evidence)
        if others:
            raise Missing(f"a panel with one role; this one has {', '.join(evidence)}")
    if role not in evidence:
        raise Missing(role)
    if name not in evidence[role]:
        there = sorted(evidence[role])
        has = f"the panel has {', '.join(there) or 'none'}"
        raise Missing(f"table {name}; {has}.{nearest(name, there)}")
    return evidence[role][name]


def cka_matrix(evidence: Evidence, role: str | None = None) -> np.ndarray:
    """CKA as (layers of the model, layers of the other), in the order of the table; NaN where it is undefined."""
    table = table_of(evidence, "cka", role)
    (rows, layers), (columns, others) = (
        pd.factorize(table[name]) for name in ("model_layer", "other_layer")
    )
    cka = np.full((len(layers), len(others)), np.nan)
    cka[rows, columns] = table["cka"]
    return cka


def head_distances(evidence: Evidence, role: str | None = None, *, lowest: bool) -> pd.Series:
    """Distances of the heads in the two lowest or highest blocks, relative to uniform attention."""
    table = table_of(evidence, "attention_distance", role)
    blocks = sorted(table["block"].unique())
    some = table[table["block"].isin(blocks[:2] if lowest else blocks[-2:])]
    return some["distance_px"] / some["uniform_px"]


def accuracy_by_depth(evidence: Evidence, role: str, features: str = "gap") -> pd.Series:
    """Accuracy of linear probes of these features by depth (fraction of blocks), mean over seeds and tokens.

    If several layers of a block were probed, that of the last one.
    """
    table = table_of(evidence, "linear_probe", role)
    some = table[table["features"] == features].dropna(subset="depth")
    if some.empty:
        raise Missing(f"probes of {features} at known depths")
    some = some[some["layer"] == some.groupby("depth")["layer"].transform("last")]
    return some.groupby("depth")["accuracy"].mean()


def last_accuracy(evidence: Evidence, role: str, features: str = "gap") -> float:
    """Accuracy of linear probes of these features in the last measured block, mean over seeds and tokens."""
    return float(accuracy_by_depth(evidence, role, features).iloc[-1])


def top1_accuracy(evidence: Evidence, role: str) -> float:
    """Accuracy of the model's own classifier."""
    return float(table_of(evidence, "scaling", role)["accuracy"].iloc[0])


def spearman(x: pd.Series, y: pd.Series) -> float:
    """Spearman's rank correlation of two series with the same index."""
    return float(x.rank().corr(y.rank()))
