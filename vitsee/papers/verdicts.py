"""Verdicts on claims: a statistic of measured tables, its confidence interval, and a threshold fixed beforehand."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

Tables = Mapping[str, pd.DataFrame]
Evidence = Mapping[str, Tables]
"""The tables of a panel by the role that plays its model."""

HOLDS, FAILS, OPEN, ABSENT = "holds", "does not hold", "undecided", "not measured"
COLUMNS = (
    *("claim", "figure", "statement", "statistic", "value", "low", "high"),
    *("threshold", "holds"),
)
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t for 1 to 9 degrees of freedom."""


@dataclass(frozen=True)
class Gathered:
    """Evidence by name: of the whole, and without each group of minibatches.

    again: how often an image was drawn, by which the variance is larger than the groups show.
    """

    whole: Mapping[str, Evidence]
    left_out: Sequence[Mapping[str, Evidence]]
    again: float = 1.0


class Missing(LookupError):
    """A statistic needs something that was not measured."""


@dataclass(frozen=True)
class Claim:
    """What the authors say, as a number that is above (or below) a threshold.

    measure: takes Evidence by keyword, returns the statistic; its docstring says why the threshold.
    """

    name: str
    statement: str
    statistic: str
    threshold: float
    above: bool
    measure: Callable[..., float]

    @property
    def evidence(self) -> list[str]:
        """Names of the panels it needs."""
        return list(inspect.signature(self.measure).parameters)

    @property
    def reason(self) -> str:
        return inspect.cleandoc(self.measure.__doc__ or "")


CLAIMS: dict[str, Claim] = {}


def claim(
    statement: str, statistic: str, *, above: float | None = None, below: float | None = None
) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Register a function of evidence as the measure of a claim that its value is above or below this."""
    if (above is None) == (below is None):
        raise ValueError("a claim has one threshold: above=… or below=…")
    threshold = above if above is not None else below
    assert threshold is not None

    def enter(measure: Callable[..., float]) -> Callable[..., float]:
        name = measure.__name__
        CLAIMS[name] = Claim(name, statement, statistic, threshold, above is not None, measure)
        return measure

    return enter


@dataclass(frozen=True)
class Measured:
    """A statistic with its 95 % confidence interval; NaN where there is none."""

    value: float
    low: float
    high: float


def jackknifed(measure: Callable[..., float], evidence: Gathered) -> Measured:
    """The statistic of the whole, and its interval by the delete-a-group jackknife (Kott 2001).

    The interval is that of Student's t with one degree of freedom less than there are groups; without
    groups there is none.
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
    """Holds or not only if the whole interval says so."""
    if math.isnan(found.value):
        return ABSENT
    low, high = (found.low, found.high) if claim.above else (-found.high, -found.low)
    threshold = claim.threshold if claim.above else -claim.threshold
    if low > threshold:
        return HOLDS
    return FAILS if high < threshold else OPEN


def verdict(claim: Claim, figure: str, evidence: Gathered) -> dict[str, object]:
    """A row of claims.csv; evidence that is absent or lacks what the statistic needs is not measured."""
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
