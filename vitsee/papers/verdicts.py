"""Verdicts on claims: a statistic, its confidence interval, and a threshold fixed in advance."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

Tables = Mapping[str, pd.DataFrame]
Evidence = Mapping[str, Tables]
"""The tables of a panel, by role of its model."""

HOLDS, FAILS, OPEN, ABSENT = "holds", "does not hold", "undecided", "not measured"
COLUMNS = (
    *("claim", "figure", "statement", "statistic", "value", "low", "high"),
    *("threshold", "holds"),
)
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t for 1 to 9 degrees of freedom."""


@dataclass(frozen=True)
class Gathered:
    """Evidence by name: in full, and without each group of minibatches.

    again: how often each image was drawn; the variance between groups is too small by this factor.
    """

    whole: Mapping[str, Evidence]
    left_out: Sequence[Mapping[str, Evidence]]
    again: float = 1.0


class Missing(LookupError):
    """Raised if a statistic needs something that was not measured."""


@dataclass(frozen=True)
class Claim:
    """A claim of the authors, as a statistic that should be above (or below) a threshold.

    measure: takes Evidence by keyword and returns the statistic; its docstring justifies the threshold.
    """

    name: str
    statement: str
    statistic: str
    threshold: float
    above: bool
    measure: Callable[..., float]

    @property
    def evidence(self) -> list[str]:
        """Names of the evidence it needs."""
        return list(inspect.signature(self.measure).parameters)

    @property
    def reason(self) -> str:
        return inspect.cleandoc(self.measure.__doc__ or "")


CLAIMS: dict[str, Claim] = {}


def claim(
    statement: str, statistic: str, *, above: float | None = None, below: float | None = None
) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Register a function of evidence as the statistic of a claim that it is above or below a threshold."""
    if (above is None) == (below is None):
        raise ValueError("a claim has exactly one threshold: above=… or below=…")
    threshold = above if above is not None else below
    assert threshold is not None

    def register(measure: Callable[..., float]) -> Callable[..., float]:
        name = measure.__name__
        CLAIMS[name] = Claim(name, statement, statistic, threshold, above is not None, measure)
        return measure

    return register


@dataclass(frozen=True)
class Measured:
    """A statistic with its 95 % confidence interval, or NaN."""

    value: float
    low: float
    high: float


def jackknifed(measure: Callable[..., float], evidence: Gathered) -> Measured:
    """The statistic of all groups, with its interval from the delete-a-group jackknife (Kott 2001).

    The interval uses Student's t with one degree of freedom fewer than groups. With fewer than two groups
    it is NaN.
    """
    value = measure(**evidence.whole)
    parts = np.array([measure(**part) for part in evidence.left_out])
    groups = len(parts)
    if groups < 2 or not np.isfinite(parts).all():
        return Measured(value, math.nan, math.nan)
    squares = float(((parts - parts.mean()) ** 2).sum())
    error = math.sqrt(evidence.again * (groups - 1) / groups * squares)
    margin = _T[min(groups - 1, len(_T)) - 1] * error
    return Measured(value, value - margin, value + margin)


def judge(claim: Claim, found: Measured) -> str:
    """A claim holds, or does not, only if its whole interval is on one side of the threshold."""
    if math.isnan(found.value):
        return ABSENT
    low, high = (found.low, found.high) if claim.above else (-found.high, -found.low)
    threshold = claim.threshold if claim.above else -claim.threshold
    if low > threshold:
        return HOLDS
    return FAILS if high < threshold else OPEN


def verdict(claim: Claim, figure: str, evidence: Gathered) -> dict[str, object]:
    """One row of claims.csv; "not measured" if the evidence lacks what the statistic needs."""
    try:
        found = jackknifed(claim.measure, evidence)
    except Missing:
        found = Measured(math.nan, math.nan, math.nan)
    sign = "above" if claim.above else "below"
    return dict(
        zip(
            COLUMNS,
            (
                *(claim.name, figure, claim.statement, f"{claim.statistic} ({sign} is claimed)"),
                *(found.value, found.low, found.high, claim.threshold, judge(claim, found)),
            ),
            strict=True,
        )
    )
