"""Verdicts on claims: a statistic, its confidence interval, a threshold fixed in advance, and a null."""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from numbers import Real
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from vitsee.errors import UserError
from vitsee.plugins import where

log = logging.getLogger(__name__)

Tables = Mapping[str, pd.DataFrame]
Evidence = Mapping[str, Tables]
"""The tables of a panel, by its models' roles."""
Panels = Mapping[str, Sequence[Evidence]]
"""For each piece of evidence by name, the panels that give it."""

YES, NO, UNDECIDED = "yes", "no", "undecided"
NOT_TESTABLE, UNTRAINED_TOO = "not testable", "untrained too"
COLUMNS = (
    *("claim", "figure", "statement", "statistic", "value", "low", "high"),
    *("threshold", "holds", "untrained", "why"),
)
DRAWS = 200
"""Number of draws for an interval, in pairs of opposite signs."""
_PARTS = ("Threshold", "Null", "Premise")
"""What a claim's docstring explains, one item per line, below the authors' words."""


@dataclass(frozen=True)
class Gathered:
    """Panels by name of the evidence: in full, and without each group of minibatches.

    again: how often each image was drawn; the variance between groups is too small by this factor.
    """

    whole: Panels
    left_out: Sequence[Panels]
    again: float = 1.0

    @cached_property
    def deviations(self) -> list[dict[str, dict[str, np.ndarray]]]:
        """The deviations of each panel's and role's tables, in order: see `_deviations`."""
        return [_deviations(*one) for one in _with_parts(self)]

    def apart(self) -> Iterator[Gathered]:
        """Each choice of one panel per piece of evidence."""
        for numbers in product(*(range(len(panels)) for panels in self.whole.values())):
            whole, *left_out = (
                {name: [panels[name][i]] for name, i in zip(panels, numbers, strict=True)}
                for panels in (self.whole, *self.left_out)
            )
            yield Gathered(whole, left_out, self.again)


class Missing(LookupError):
    """Raised if a statistic needs something that was not measured."""


Measure = Callable[..., "float | np.ndarray"]


@dataclass(frozen=True)
class Claim:
    """A claim of the authors, as a statistic that should be above (or below) a threshold.

    measure: takes Evidence by keyword and returns the statistic; its docstring has the authors' words, and
    the reasons for threshold, null and premise. untrained: whether the same networks with random weights are its
    null. premise: takes the same evidence and returns why it cannot test the claim, or "".
    any_of: the claim is that one of many exists: `measure` returns all of them, (many,), and the best counts.
    """

    name: str
    statement: str
    statistic: str
    threshold: float
    above: bool
    measure: Measure
    untrained: bool = True
    premise: Callable[..., str] | None = None
    any_of: bool = False

    @property
    def evidence(self) -> list[str]:
        """Names of the evidence it needs."""
        return list(inspect.signature(self.measure).parameters)

    @cached_property
    def reasons(self) -> dict[str, str]:
        """The authors' words ("Paper"), and the reasons for threshold, null and premise."""
        text = inspect.cleandoc(self.measure.__doc__ or "")
        words, *parts = re.split(rf"^({'|'.join(_PARTS)}): ", text, flags=re.M)
        found = dict(zip(parts[::2], parts[1::2], strict=True))
        return {name: " ".join(part.split()) for name, part in [("Paper", words), *found.items()]}


CLAIMS: dict[str, Claim] = {}


def claim(
    statement: str,
    statistic: str,
    *,
    above: float | None = None,
    below: float | None = None,
    untrained: bool = True,
    premise: Callable[..., str] | None = None,
    any_of: bool = False,
) -> Callable[[Measure], Measure]:
    """Register a function of evidence as the statistic of a claim to be above or below a threshold.

    The same function may be registered again. Raises UserError for another one of that name, unless there is exactly
    one threshold, a finite number, unless the premise is a function, and unless the docstring has all parts (see
    `Claim`).
    """

    def register(measure: Measure) -> Measure:
        name, is_above, place = measure.__name__, above is not None, _place(measure)
        asked, threshold = f"the claim {name} ({place})", above if is_above else below
        if threshold is None or (is_above and below is not None):
            raise UserError(f"{asked} needs exactly one threshold: above=… or below=…")
        if not isinstance(threshold, Real) or not math.isfinite(threshold):
            side = "above" if is_above else "below"
            raise UserError(f"{asked} has {side}={threshold!r}; a threshold is a number: {side}=1")
        if premise is not None and not callable(premise):
            raise UserError(
                f"{asked} has premise={premise!r}; a premise is a function of the same evidence; without one, "
                f"leave it out"
            )
        made = Claim(
            name, statement, statistic, threshold, is_above, measure, untrained, premise, any_of
        )
        if lacking := [part for part in ("Paper", *_PARTS) if not made.reasons.get(part)]:
            words = ", ".join("the authors' words" if part == "Paper" else part for part in lacking)
            raise UserError(
                f"{asked}: its docstring lacks {words}; it must begin with the authors' words and have a line "
                f"for each of the rest: {': …, '.join(_PARTS)}: …"
            )
        if name in CLAIMS and (there := _place(CLAIMS[name].measure)) != place:
            raise UserError(f"two claims are called {name}: {there}, and {place}; rename one")
        CLAIMS[name] = made
        return measure

    return register


def _place(measure: Measure) -> str:
    """The file and line of a function; only the module of a script or notebook, whose cells may run again."""
    code = measure.__code__
    at = f"{code.co_filename}, line {code.co_firstlineno}"
    return measure.__module__ if measure.__module__ == "__main__" else at


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % confidence interval, or NaN."""

    value: float
    low: float = math.nan
    high: float = math.nan


def statistic(claim: Claim, panels: Panels) -> float:
    """The statistic of the claim; if several panels give the same evidence, for the worst choice of panels.

    So a claim about several panels holds only if it holds for every choice, and no correction for their number is
    needed (Berger 1982, intersection-union test). Raises Missing if no choice has the necessary evidence.
    """
    best, worst = (np.max, np.min) if claim.above else (np.min, np.max)
    return float(worst([best(values) for values in every_statistic(claim, panels)]))


def every_statistic(claim: Claim, panels: Panels) -> list[np.ndarray]:
    """The values of the claim's function, (1 or many,), for each choice of panels with the necessary evidence.

    Raises Missing if there is no such choice, and UserError if the function returns no number, or several without
    `any_of`.
    """
    statistics, missing = [], Missing("its panels")
    for choice in choices(panels):
        try:
            with np.errstate(divide="ignore", invalid="ignore"):  # NaN where it is undefined
                given = _called(claim, claim.measure, choice)
            statistics.append(_numbers(claim, given))
        except Missing as what:
            missing = what
    if not statistics:
        raise missing
    return statistics


def _numbers(claim: Claim, given: object) -> np.ndarray:
    """What the claim's function returned, as (1 or many,) numbers. Raises UserError for anything else."""
    asked = f"the claim {claim.name} ({_place(claim.measure)})"
    try:
        values = np.atleast_1d(np.asarray(given))
    except ValueError:  # lists of different lengths
        values = np.array([None])
    if values.dtype.kind not in "biuf":
        wanted = "numbers" if claim.any_of else "a number"
        raise UserError(f"{asked} returns {_shown(given)}; return {wanted}")
    if claim.any_of and not (values.ndim == 1 and values.size):
        shape = " x ".join(map(str, values.shape))
        raise UserError(f"{asked} returns {shape} values; with any_of=True, return a list of them")
    if values.size != 1 and not claim.any_of:
        raise UserError(
            f"{asked} returns {values.size} values; write any_of=True if one of them is enough, or return one number"
        )
    return values.astype(float).ravel()


def _reason(claim: Claim, choice: dict[str, Evidence]) -> str:
    """What the claim's premise returned. Raises UserError if it is no text."""
    assert claim.premise is not None
    given = _called(claim, claim.premise, choice)
    if not isinstance(given, str):
        raise UserError(
            f'the premise of the claim {claim.name} ({_place(claim.measure)}) returns {_shown(given)}; return "" if '
            f"it holds, otherwise the reason why the claim cannot be tested"
        )
    return given


def _shown(given: object) -> str:
    plain = given is None or isinstance(given, (str, bool, int, float))
    return repr(given) if plain else f"a {type(given).__name__}"


def _called(claim: Claim, function: Callable[..., Any], choice: dict[str, Evidence]) -> Any:
    """What a function of the claim returns. Raises UserError, with file and line, if one of the user's own fails."""
    try:
        return function(**choice)
    except Exception as error:
        if _is_own(function) or isinstance(error, (Missing, UserError)):
            raise
        raise UserError(
            f"the claim {claim.name} failed: {where(error)}; VITSEE_TRACEBACK=1 prints the traceback"
        ) from error


def _is_own(function: Callable[..., Any]) -> bool:
    """Whether a function is vitsee's own, not the user's."""
    return function.__module__.startswith("vitsee.")


def choices(panels: Panels) -> Iterator[dict[str, Evidence]]:
    """Every choice of one panel per piece of evidence."""
    for choice in product(*panels.values()):
        yield dict(zip(panels, choice, strict=True))


def estimated(claim: Claim, evidence: Gathered, draws: int = DRAWS) -> Estimate:
    """The statistic with its interval, from the statistics of perturbed tables.

    The interval is NaN with fewer than two groups, or if the statistic is undefined for any draw.
    """
    value = statistic(claim, evidence.whole)
    if len(evidence.left_out) < 2:
        return Estimate(value)
    if not any(evidence.deviations):
        return Estimate(value, value, value)
    if claim.any_of:
        return Estimate(value, *simultaneous(claim, evidence, draws))
    drawn = np.array([statistic(claim, panels) for panels in perturbed(evidence, draws)])
    if not np.isfinite(drawn).all():
        return Estimate(value)
    low, high = percentiles(drawn, value)
    return Estimate(value, min(low, value), max(high, value))


def percentiles(drawn: np.ndarray, value: float) -> tuple[float, float]:
    """Bias-corrected 95 % percentile interval, which stays within the range of the statistic.

    drawn: (draws,). (Efron and Tibshirani 1993, section 14.3, without acceleration.)
    """
    normal, least = NormalDist(), 1 / (len(drawn) + 1)
    below = float(np.mean(drawn < value) + np.mean(drawn == value) / 2)
    bias = normal.inv_cdf(min(max(below, least), 1 - least))
    ends = [normal.cdf(2 * bias + side * normal.inv_cdf(0.975)) for side in (-1, 1)]
    low, high = np.quantile(drawn, ends)
    return float(low), float(high)


def simultaneous(claim: Claim, evidence: Gathered, draws: int = DRAWS) -> tuple[float, float]:
    """95 % interval of the best of many statistics, from intervals that hold for all of them at once.

    The best of many noisy numbers looks better than it is. Here all true values are within their intervals
    with a probability of 95 %, so the best of them is between the best lower and the best upper end.
    """
    best, worst = (np.max, np.min) if claim.above else (np.min, np.max)
    every = zip(
        *(every_statistic(claim, panels) for panels in perturbed(evidence, draws)), strict=True
    )
    ends = []
    for values, drawn in zip(every_statistic(claim, evidence.whole), every, strict=True):
        apart = np.array(drawn) - values  # (draws, many)
        error = np.sqrt(np.mean(apart**2, 0))
        width = np.quantile(np.max(np.abs(apart) / np.where(error > 0, error, 1), 1), 0.95)
        ends.append([best(values - width * error), best(values + width * error)])
    low, high = worst(ends, axis=0)
    return float(low), float(high)


def perturbed(evidence: Gathered, draws: int = DRAWS) -> Iterator[Panels]:
    """Draws of the evidence as it might be with different images: all numbers in its tables move together.

    They are drawn from the multivariate t distribution that the delete-a-group jackknife gives for the
    tables (Kott 2001): its variance is (G - 1) / G times the sum over groups of squared deviations, with G - 1
    degrees of freedom for G groups. Numbers in tables are smooth in the groups, so this is valid also
    where the statistic is not (a rank, a median, a largest value), and the jackknife of the statistic is not.
    """
    groups, rng = len(evidence.left_out), np.random.default_rng(0)
    weights = rng.standard_normal((draws // 2, groups))
    weights *= np.sqrt((groups - 1) / rng.chisquare(groups - 1, (draws // 2, 1)))
    weights *= math.sqrt(evidence.again * (groups - 1) / groups)
    for weight in np.concatenate([weights, -weights]):
        by = iter(evidence.deviations)
        yield {
            name: [
                {role: Moved(tables, next(by), weight) for role, tables in panel.items()}
                for panel in panels
            ]
            for name, panels in evidence.whole.items()
        }


def _with_parts(evidence: Gathered) -> Iterator[tuple[Tables, list[Tables]]]:
    """The tables of each panel and role, in order, together with those without each group."""
    for name, panels in evidence.whole.items():
        for i, panel in enumerate(panels):
            for role, tables in panel.items():
                yield tables, [part[name][i][role] for part in evidence.left_out]


class Moved(Mapping[str, pd.DataFrame]):
    """Tables with their numbers moved by a weighted sum of deviations, computed on first use."""

    def __init__(
        self,
        tables: Tables,
        deviations: Mapping[str, Mapping[str, np.ndarray]],
        weights: np.ndarray,
    ) -> None:
        self._tables, self._deviations, self._weights = tables, deviations, weights
        self._moved: dict[str, pd.DataFrame] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self._moved:
            table = self._tables[name]
            by_column = self._deviations.get(name, {})
            self._moved[name] = table.assign(
                **{column: table[column] + self._weights @ by for column, by in by_column.items()}
            )
        return self._moved[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)


def _deviations(tables: Tables, parts: Sequence[Tables]) -> dict[str, dict[str, np.ndarray]]:
    """(groups, rows) by table and column: deviations of each float column without a group from their mean."""
    deviations: dict[str, dict[str, np.ndarray]] = {}
    for name, table in tables.items():
        for column in table.select_dtypes("float64").columns:
            values = np.array([part[name][column] for part in parts])
            if (values != values[0]).any():
                deviations.setdefault(name, {})[column] = values - values.mean(0)
    return deviations


def judge(claim: Claim, estimate: Estimate, margin: float = math.inf) -> str:
    """Return the verdict: a claim holds, or does not, only if the whole interval is on one side of the threshold.

    margin: how far the interval is beyond the statistic of untrained networks. If they pass the threshold as well, the
    claim holds only if this is above 0.
    """
    sign = 1 if claim.above else -1
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    if low > sign * claim.threshold:
        return UNTRAINED_TOO if margin <= 0 else YES
    return NO if high < sign * claim.threshold else UNDECIDED


def beyond(claim: Claim, estimate: Estimate, untrained: float) -> float:
    """How far the whole interval, or the value without one, is on the claimed side of untrained networks."""
    sign = 1 if claim.above else -1
    ends = [sign * end for end in (estimate.value, estimate.low, estimate.high)]
    return min((end for end in ends if not math.isnan(end)), default=math.nan) - sign * untrained


def unfulfilled(claim: Claim, panels: Panels) -> str:
    """Why the claim's premise does not hold for some choice of panels; empty if it holds for all."""
    if claim.premise is None:
        return ""
    return next(filter(None, (_reason(claim, choice) for choice in choices(panels))), "")


@dataclass(frozen=True)
class Against:
    """The untrained networks that come nearest to the trained ones.

    null: their statistic. margin: how far the trained ones are beyond it; infinite if there is none. lacking: why a
    choice of panels has no null.
    """

    null: float = math.nan
    margin: float = math.inf
    lacking: str = ""


def compared(claim: Claim, evidence: Gathered, estimate: Estimate, untrained: Panels) -> Against:
    """Compare each choice of panels with the same choice of untrained networks. estimate: that of the evidence."""
    found, lacking = Against(), ""
    every = list(evidence.apart())
    for one, other in zip(every, Gathered(untrained, []).apart(), strict=True):
        try:
            own = estimate if len(every) == 1 else estimated(claim, one)
        except Missing:  # it is no part of the statistic
            continue
        try:
            null = statistic(claim, other.whole)
            reason = "the statistic of untrained networks is undefined" if math.isnan(null) else ""
        except Missing as missing:
            null, reason = math.nan, f"{missing}"
        if reason:
            lacking = f"no null: {reason}"
        elif (margin := beyond(claim, own, null)) < found.margin:
            found = Against(null, margin)
    return replace(found, lacking=lacking)


def verdict(
    claim: Claim, figure: str, evidence: Gathered, untrained: Panels | None = None
) -> dict[str, object]:
    """One row of claims.csv; "not testable", with the reason, if the evidence lacks what the claim needs.

    untrained: the same panels of the same networks with random weights.
    """
    estimate, against, why = Estimate(math.nan), Against(), ""
    try:
        estimate, why = estimated(claim, evidence), unfulfilled(claim, evidence.whole)
        if math.isnan(estimate.value):
            why = why or "the statistic is undefined"
    except Missing as missing:
        why = f"not measured: {missing}"
        if not _is_own(claim.measure):  # it may be a slip
            log.warning("warning: the claim %s is not testable: %s", claim.name, why)
    if untrained is not None and not why:
        against = compared(claim, evidence, estimate, untrained)
    holds = NOT_TESTABLE if why else judge(claim, estimate, against.margin)
    sign = "above" if claim.above else "below"
    return dict(
        zip(
            COLUMNS,
            (
                *(claim.name, figure, claim.statement, f"{claim.statistic} ({sign} is claimed)"),
                *(
                    estimate.value,
                    estimate.low,
                    estimate.high,
                    claim.threshold,
                    holds,
                    against.null,
                    why or against.lacking,
                ),
            ),
            strict=True,
        )
    )
